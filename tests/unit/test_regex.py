"""Regular expressions that are matched against untrusted text (files, mails, sources, output of guests): each use of
Python's `re` is in a table, and no pattern takes more than linear time. For a new one use RE2 (`import re2`), which is
linear for every pattern, or state in the table what bounds it.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.regex_table import IN_LOOPS_FULLMATCH, OURS, STRANGERS

TESTBED = Path(__file__).parents[2] / "testbed"
_WHOLE = ("match", "fullmatch")
_CALLS = ("compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A use of Python's `re`.

    `name`: the constant that it is assigned to, else the function that contains it; `pattern`: None if it is built from
    parts; `anchored`: it is matched only at the beginning of a text.
    """

    module: str
    name: str
    pattern: str | bytes | None
    flags: int
    anchored: bool


def uses() -> Iterator[Use]:
    for path in sorted(TESTBED.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = path.relative_to(TESTBED).as_posix().removesuffix(".py")
        asked: dict[str, set[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked.setdefault(node.value.id, set()).add(node.attr)
        yield from _of(tree, module, "", asked)


def _of(node: ast.AST, module: str, inside: str, asked: dict[str, set[str]]) -> Iterator[Use]:
    for child in ast.iter_child_nodes(node):
        name = inside
        if not inside and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = child.name
        elif not inside and isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            name = ",".join(ast.unparse(target) for target in targets).strip("()").replace(" ", "")
        if (called := _call(child)) is not None:
            call, method = called
            methods = asked.get(name, set()) if method == "compile" else {method}
            yield Use(
                module=module,
                name=name,
                pattern=_constant(call.args[0]),
                flags=_flags(call),
                anchored=f"{module}:{name}" in IN_LOOPS_FULLMATCH
                or (bool(methods) and methods <= {*_WHOLE, "pattern"}),
            )
        yield from _of(child, module, name, asked)


def _call(node: ast.AST) -> tuple[ast.Call, str] | None:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CALLS):
        return None
    return (node, node.func.attr) if isinstance(node.func.value, ast.Name) and node.func.value.id == "re" else None


def _constant(node: ast.expr) -> str | bytes | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, str | bytes) else None


def _flags(call: ast.Call) -> int:
    words = [
        word.attr
        for node in call.args[1:] + [keyword.value for keyword in call.keywords]
        for word in ast.walk(node)
        if isinstance(word, ast.Attribute)
    ]
    return sum(int(getattr(re, word)) for word in words if word.isupper())


def test_every_use_of_pythons_re_is_in_the_table() -> None:
    used: dict[str, set[str]] = {}
    for use in uses():
        used.setdefault(use.module, set()).add(use.name)
    known = {module: set(names.split()) for table in (OURS, STRANGERS) for module, names in _rows(table)}
    new = {
        module: sorted(names - known.get(module, set()))
        for module, names in used.items()
        if names - known.get(module, set())
    }
    assert not new, (
        f"not in tests/support/regex_table.py: {new}; use re2 for strangers' text, or say there what bounds it"
    )
    gone = {
        module: sorted(names - used.get(module, set()))
        for module, names in known.items()
        if names - used.get(module, set())
    }
    assert not gone, f"in tests/support/regex_table.py, and not in the code: {gone}"
    both = {module for module, _ in _rows(OURS)} & {module for module, _ in _rows(STRANGERS)}
    assert not both, both


def _rows(table: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
    return [(module, names) for module, (names, _) in table.items()]


def test_no_module_imports_functions_of_re() -> None:
    """The test of the table would not find such uses."""
    for path in sorted(TESTBED.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "re"), path
            assert not (
                isinstance(node, ast.Import) and any(name.name == "re" and name.asname for name in node.names)
            ), path


MEETING_STRANGERS = [use for use in uses() if use.module in STRANGERS and use.pattern is not None]


@pytest.mark.parametrize("use", MEETING_STRANGERS, ids=lambda use: f"{use.module}:{use.name}")
def test_patterns_for_untrusted_text_take_linear_time(use: Use) -> None:
    assert use.pattern is not None
    compiled = re.compile(use.pattern, use.flags)
    ask: Callable[[Any], object] = compiled.search
    if use.anchored:
        ask = lambda text: (compiled.match(text), compiled.fullmatch(text))  # noqa: E731 - one of two
    for begin, pump in pumps(use.pattern):
        assert not grows_faster(ask, begin, pump), f"more than linear in {begin!r} + {pump!r} * n"


_SIGNS = "[](){}<>:;,/=+-*.'\"#@%&|!$_~\\"


def pumps(pattern: str | bytes) -> Iterator[tuple[Any, Any]]:
    """Yield prefixes and texts to repeat after them: signs and words of the pattern, which cause backtracking."""
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    bare = re.sub(r"\\[A-Za-z]|\(\?P<\w+>|\(\?", " ", text)
    words = re.findall(r"[A-Za-z]{2,}|[^\w\\s]{2,}", bare)[:8]
    signs = [*sorted({*bare} & {*_SIGNS})[:12], "a", "0", " ", "\n"]
    repeated = [*signs, *(sign + other for sign in signs for other in signs if sign != other), *words]
    for pump in dict.fromkeys(repeated):
        for begin in dict.fromkeys(("", *words[:3])):
            yield (begin.encode("latin-1"), pump.encode("latin-1")) if isinstance(pattern, bytes) else (begin, pump)


# Far longer than a linear pattern takes for the longest of these texts on any machine, and less than a quadratic one.
_NOTHING_S = 0.004


def grows_faster(ask: Callable[[Any], object], begin: Any, pump: Any) -> bool:
    """Return whether twice the text takes much more than twice the time, repeatedly. Stop early if it takes no time."""
    # Short texts are enough to notice exponential time.
    if any(timed(ask, begin + pump * count) > 10 * _NOTHING_S for count in (8, 16, 20, 24)):
        return True
    if timed(ask, begin + pump * 2048) < _NOTHING_S:
        return False
    last_s, steep = 0.0, 0
    for exponent in range(7, 14):
        taken_s = min(timed(ask, begin + pump * (1 << exponent)) for _ in range(2))
        steep = steep + 1 if taken_s > _NOTHING_S and taken_s > 3 * last_s > 0 else 0
        if steep >= 2 or taken_s > 2:
            return True
        last_s = taken_s
    return False


def timed(ask: Callable[[Any], object], text: Any) -> float:
    begun = time.process_time()
    ask(text)
    return time.process_time() - begun


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"\S*/\S+\n", r"[^\]]*\d+/\d+x", r"\s*\[", r"(?:.*: )?(\S+)\]$"])
def test_superlinear_patterns_are_detected(pattern: str) -> None:
    compiled = re.compile(pattern)
    assert any(grows_faster(compiled.search, begin, pump) for begin, pump in pumps(pattern))
