"""docs/architecture.md shows the layers that are checked; the pages name files that are there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.support import docs_pages
from tests.unit.test_architecture import LAYERS

ROOT = docs_pages.ROOT
# Not docs/results/: they tell what was measured when, and keep the names of then.
PAGES = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "bugs").glob("*.md"),
        ROOT / "README.md",
        *ROOT.glob("ansible/*.md"),
    ]
)
# Files of readers, and those that pages tell how to add.
EXAMPLES = {
    "NAME.lock",
    "my.yaml",
    "topology.yaml",
    "bug.yaml",
    "a.yaml",
    "other.yaml",
    "x.yaml",
    "pytest.ini",
    "conftest.py",
}
FILES = {
    str(path.relative_to(ROOT))
    for folder in ("testbed", "tests", "benchmarks", "images", "topologies", "docs", "ansible")
    for path in (ROOT / folder).rglob("*")
    if "__pycache__" not in path.parts
} | {path.name for path in ROOT.iterdir()}
_NAMED = re.compile(r"`([\w./-]+\.(?:py|yaml|md|svg|j2|js|lock|toml))(?:::\w+)?`")


def test_the_page_shows_the_nine_layers() -> None:
    shown = next(block.text for block in docs_pages.blocks("architecture") if not block.language)
    assert tuple(shown.splitlines()) == LAYERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    added = {block.file for block in docs_pages.blocks(page.stem)} if page.parent == ROOT / "docs" else set()
    known = FILES | added
    missing = [
        name
        for name in _NAMED.findall(text)
        if name not in EXAMPLES and not any(file == name or file.endswith(f"/{name}") for file in known)
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_selects_is_there(page: Path) -> None:
    """`./tb test WHAT -k WORD`, and `FILE::NAME`."""
    text = page.read_text(encoding="utf-8")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    words = re.findall(r"tb test \S+ -k (\w+)", text)
    assert not [word for word in words if not re.search(rf"def test_\w*{word}", tests)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_import_of_an_example_works(page: Path) -> None:
    examples = docs_pages.blocks(page.stem) if page.parent == ROOT / "docs" else ()
    for block in examples:
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("testbed"):
                    module = importlib.import_module(str(node.module))
                    for alias in node.names:
                        assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_every_module_of_the_walks_is_there() -> None:
    """Names without an ending in the walks of docs/architecture.md: `guest/factory`."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = [block.text for block in docs_pages.blocks("architecture") if "▼" in block.text]
    assert len(walks) == 4 and text
    packages = {name for line in LAYERS for name in line.split()}
    named = {
        found
        for walk in walks
        for found in re.findall(r"\b[a-z_]+/[a-z_]+\b", walk)
        if found.partition("/")[0] in packages
    }
    assert len(named) > 30
    assert not {name for name in named if not any(f.startswith(f"testbed/{name}") for f in FILES)}


def test_every_name_of_the_code_on_the_page_is_there() -> None:
    """Classes, functions, attributes and constants in backticks."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "testbed").rglob("*.py"))
    code += (ROOT / "tests" / "unit" / "test_architecture.py").read_text(encoding="utf-8")
    named = {part for name in re.findall(r"`([A-Za-z_]+(?:\.[a-z_]+)?)`", text) for part in name.split(".")}
    assert len(named) > 20
    assert not [name for name in named if not re.search(rf"\b{name}\b", code)]
