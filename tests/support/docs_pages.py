"""Takes the changes out of a page of docs/ and makes them in a copy of the project.

A change is a fenced block below a paragraph that ends by naming its file: "In `FILE`:" before a `diff`, "`FILE` is
new:" before the text of a new file. Further blocks without such a paragraph belong to the same file. The lines of a
`diff` that are not new must occur exactly once in the file, so that a page which no longer fits the code fails.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_COPIED = ("testbed", "images", "topologies")
_FILE = re.compile(r"(?:In `(?P<old>[^`]+)`|`(?P<new>[^`]+)` is new):$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page. `file`: what it changes or makes, empty for an example."""

    language: str
    text: str
    file: str = ""


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of docs/PAGE.md in their order."""
    lines = iter((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines())
    file = ""
    for line in lines:
        if line.startswith("```"):
            inside = itertools.takewhile(lambda one: one != "```", lines)
            yield Block(language=line.removeprefix("```"), text="".join(f"{one}\n" for one in inside), file=file)
        elif line:
            named = _FILE.search(line)
            file = (named["old"] or named["new"]) if named else ""


def example(page: str, language: str) -> str:
    """Return the text of the one example in that language: a block that changes no file."""
    (found,) = (block.text for block in blocks(page) if block.language == language and not block.file)
    return found


def apply(page: str, copy: Path) -> list[str]:
    """Make the changes of a page in a new copy of the project; return the paths of the files below it."""
    for name in _COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    changed: dict[str, None] = {}
    for block in blocks(page):
        if not block.file:
            continue
        path = copy / block.file
        if block.language == "diff":
            path.write_text(_patched(path.read_text(encoding="utf-8"), block), encoding="utf-8")
        else:
            assert not path.exists(), f"{page}: {block.file} is there already"
            path.write_text(block.text, encoding="utf-8")
        changed[block.file] = None
    assert changed, f"{page}: changes nothing"
    return list(changed)


def _patched(text: str, block: Block) -> str:
    lines = block.text.splitlines(keepends=True)
    assert all(line[0] in " +-" for line in lines), f"{block.file}: a line of the diff begins otherwise: {block.text}"
    old, new = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
    whole, sought = f"\n{text}", f"\n{old}"
    assert whole.count(sought) == 1, f"{block.file}: expected once, found {whole.count(sought)} times: {old}"
    return whole.replace(sought, f"\n{new}")[1:]
