"""Parses KTAP, version 1 (Documentation/dev-tools/ktap.rst); strict where the kernel's parser
(tools/testing/kunit/kunit_parser.py) reports an error: a missing or wrong version or plan, results out of order, too
many or too few, a subtest without its result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RESULT = re.compile(
    r"(?P<status>ok|not ok) (?P<number>[0-9]+) ?(?:- )?(?P<name>[^#]*?)(?: # (?P<directive>[A-Z]+) ?(?P<why>.*))?"
)
_PLAN = re.compile(r"1\.\.([0-9]+)")
_DIRECTIVES = {None, "SKIP", "TODO", "XFAIL", "TIMEOUT", "ERROR"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One result. `diagnostics`: the lines beginning with # before it."""

    name: str
    status: str
    directive: str | None
    why: str
    tests: tuple[Test, ...]
    diagnostics: tuple[str, ...]


def parse(text: str) -> tuple[Test, ...]:
    """Return the top level's tests.

    :raise ValueError: the text is not KTAP; says where.
    """
    lines = text.split("\n")
    if lines.pop() != "":
        raise ValueError("the last line has no end")
    tests, after = _level(lines, 0, "")
    if after != len(lines):
        raise ValueError(f"line {after + 1}: more after the last result: {lines[after]!r}")
    return tests


def _level(lines: list[str], at: int, indent: str) -> tuple[tuple[Test, ...], int]:
    """Parse one level that begins at a line; return its tests and the number of the line after it."""

    def line(number: int) -> str | None:
        """Return a line without its indent, or None at the level's end."""
        return lines[number][len(indent) :] if number < len(lines) and lines[number].startswith(indent) else None

    if line(at) != "KTAP version 1":
        raise ValueError(f"line {at + 1}: expected KTAP version 1, got {line(at)!r}")
    at += 1
    while (line(at) or "").startswith("#"):
        at += 1
    plan = _PLAN.fullmatch(line(at) or "")
    if plan is None:
        raise ValueError(f"line {at + 1}: expected a plan, got {line(at)!r}")
    at += 1
    found: list[Test] = []
    inner: tuple[Test, ...] = ()
    said: list[str] = []
    while len(found) < int(plan[1]):
        here = line(at)
        if here is None:
            raise ValueError(f"line {at + 1}: expected {plan[1]} results, got {len(found)}")
        if here.startswith("#"):
            said.append(here)
            at += 1
        elif here.startswith("  "):
            if inner:
                raise ValueError(f"line {at + 1}: the subtest before it has no result")
            inner, at = _level(lines, at, indent + "  ")
        else:
            result = _RESULT.fullmatch(here)
            if result is None or result["directive"] not in _DIRECTIVES:
                raise ValueError(f"line {at + 1}: expected a result, got {here!r}")
            if int(result["number"]) != len(found) + 1:
                raise ValueError(f"line {at + 1}: expected number {len(found) + 1}, got {result['number']}")
            found.append(
                Test(
                    name=result["name"],
                    status=result["status"],
                    directive=result["directive"],
                    why=result["why"] or "",
                    tests=inner,
                    diagnostics=tuple(said),
                )
            )
            inner, said, at = (), [], at + 1
    return tuple(found), at
