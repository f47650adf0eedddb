"""What the testbed reads and writes is UTF-8, whatever the locale of the machine says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "testbed"
# `.open` of these is no file's.
_OTHERS = {"os", "gzip", "lzma", "bz2", "tarfile", "webbrowser", "state", "self._plugs[-1]"}
# Where the mode is among the arguments of a function that opens files.
_MODE = {"open": 1, "os.fdopen": 1, ".open": 0, ".makefile": 0}


def unnamed(source: str) -> Iterator[str]:
    """The calls that read or write text and leave its encoding to the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name = ast.unparse(node.func)
        owner, dot, method = name.rpartition(".")
        if method in ("read_text", "write_text") and dot:
            yield ast.unparse(node)
        if owner in _OTHERS and name not in _MODE:
            continue
        place = _MODE.get(name, _MODE.get(f".{method}") if dot else None)
        if place is None:
            continue
        modes = [*node.args[place : place + 1], *(word.value for word in node.keywords if word.arg == "mode")]
        if not modes or "b" not in ast.unparse(modes[0]):
            yield ast.unparse(node)


def test_every_text_file_names_its_encoding() -> None:
    found = {f"{path.relative_to(PACKAGE)}: {call}" for path in PACKAGE.rglob("*.py") for call in unnamed(path.read_text(encoding="utf-8"))}
    assert not found, "add encoding='utf-8'"


@pytest.mark.parametrize("call", ["p.read_text()", "p.write_text(x)", "open(p)", "p.open()", "p.open('a')", "os.fdopen(3, 'w')"])
def test_a_call_without_an_encoding_is_found(call: str) -> None:
    assert list(unnamed(call)) == [ast.unparse(ast.parse(call))]
    assert list(unnamed(call[:-1] + ", encoding='utf-8')" if call[-2] != "(" else call[:-1] + "encoding='utf-8')")) == []


@pytest.mark.parametrize("call", ["p.open('rb')", "open(p, 'wb')", "os.fdopen(3, 'wb')", "os.open(p, flags)", "gzip.open(p)"])
def test_bytes_need_none(call: str) -> None:
    assert list(unnamed(call)) == []
