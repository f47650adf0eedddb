"""Checks sizes: the lines of files and functions, and the number of parameters."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 350, 50, 8
FILES = sorted(path for part in ("testbed", "tests", "benchmarks") for path in (ROOT / part).rglob("*.py"))
# Still larger than allowed, to be split.
LARGE_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
MANY_PARAMETERS: set[str] = set()

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(part: str) -> Iterator[tuple[str, Function]]:
    """Yield each function and method below a folder, as `FILE:NAME`."""
    for path in FILES:
        if path.is_relative_to(ROOT / part):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, Function):
                    yield f"{name_of(path)}:{node.name}", node


def is_command(function: Function) -> bool:
    """Return whether it declares a command, whose parameters are the command's options."""
    return any(
        isinstance(one, ast.Call) and ast.unparse(one.func).endswith((".command", ".callback"))
        for one in function.decorator_list
    )


def test_no_file_is_longer_than_350_lines() -> None:
    assert {name_of(path) for path in FILES if len(path.read_text().splitlines()) > MOST_LINES} == LARGE_FILES


def test_no_function_is_longer_than_50_lines() -> None:
    long = {name for name, one in functions("testbed") if (one.end_lineno or 0) - one.lineno + 1 > MOST_FUNCTION_LINES}
    assert long == LONG_FUNCTIONS


def test_no_function_has_more_than_8_parameters() -> None:
    def count(one: ast.arguments) -> int:
        named = [*one.posonlyargs, *one.args, *one.kwonlyargs]
        return len([arg for arg in named if arg.arg not in ("self", "cls")])

    many = {name for name, one in functions("testbed") if count(one.args) > MOST_PARAMETERS and not is_command(one)}
    assert many == MANY_PARAMETERS
