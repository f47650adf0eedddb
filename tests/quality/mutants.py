"""Runs `./tb mutants [MODULE...]`: makes one change to a module at a time (cosmic-ray), and lists the changes that its
unit tests miss.

Works on a copy of the checkout. Each module takes minutes. In a module with coroutines, which need a guest, it changes
the plain functions and the module's own values that they use.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The modules whose code decides something, each with its unit tests.
MODULES: dict[str, tuple[str, ...]] = {
    "testbed/guest/lifecycle.py": ("guest/test_lifecycle.py",),
    "testbed/scenarios/verdict.py": (
        "scenarios/test_verdict.py",
        "scenarios/test_claims.py",
        "scenarios/test_thresholds.py",
    ),
    "testbed/topology/check.py": (
        "topology/test_check.py",
        "topology/test_messages.py",
        "topology/test_timeline.py",
    ),
    "testbed/bugs/statistics.py": ("bugs/test_statistics.py",),
    "testbed/scenarios/claims/deferred_destroy.py": ("scenarios/test_thresholds.py", "scenarios/test_script_output.py"),
    "testbed/scenarios/claims/memory_limit.py": ("scenarios/test_thresholds.py", "scenarios/test_claims.py"),
    "testbed/scenarios/claims/many_cgroups.py": ("scenarios/test_thresholds.py", "scenarios/test_claims.py"),
    "testbed/scenarios/claims/io_cost.py": ("scenarios/test_thresholds.py", "scenarios/test_claims.py"),
    "testbed/scenarios/claims/io_limits.py": ("scenarios/test_thresholds.py", "scenarios/test_claims.py"),
    "testbed/scenarios/claims/read.py": (
        "scenarios/test_thresholds.py",
        "scenarios/test_claims.py",
        "scenarios/test_catalogue.py",
    ),
    "testbed/scenarios/claims/workers.py": ("scenarios/test_workers.py",),
    "testbed/scenarios/claims/swap_in.py": ("scenarios/test_thresholds.py", "scenarios/test_script_output.py"),
}
# `|` joins types in annotations, which are not evaluated; no code here uses it for bits. The others are changes that
# nobody makes by mistake, or that change nothing for enums.
_SKIPPED = [
    "core/ReplaceBinaryOperator_BitOr_.*",
    "core/ReplaceBinaryOperator_.*_(BitAnd|BitOr|BitXor|LShift|RShift|Pow|Mod|FloorDiv)",
    "core/ReplaceComparisonOperator_.*_(Is|IsNot)",
]
_LIMIT_S = 120
_CONTEXT = 30
_CONFIG = """\
[cosmic-ray]
module-path = "{module}"
timeout = {limit_s}.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider -p no:testbed {tests}"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = {skipped}

[cosmic-ray.filters.line-filter.lines]
"{module}" = {lines}
"""


def main(wanted: list[str]) -> int:
    """Print a line for each surviving mutant, and their number for each module."""
    unknown = [module for module in wanted if module not in MODULES]
    if unknown:
        sys.stderr.write(f"tb mutants: expected {', '.join(MODULES)}, got {', '.join(unknown)}\n")
        return 2
    tools = Path(os.environ["TESTBED_TOOLS"])
    with tempfile.TemporaryDirectory(prefix="testbed-mutants-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache"))
        for module in wanted or list(MODULES):
            _run(module, copy, tools, Path(folder))
    return 0


def _run(module: str, tree: Path, tools: Path, folder: Path) -> None:
    tests = " ".join(f"tests/unit/{name}" for name in MODULES[module])
    config, session = folder / "config.toml", folder / f"{module.replace('/', '-')}.sqlite"
    told = {"skipped": json.dumps(_SKIPPED), "lines": json.dumps(lines((tree / module).read_text()))}
    config.write_text(_CONFIG.format(module=module, limit_s=_LIMIT_S, python=sys.executable, tests=tests, **told))
    for words in (
        ("cosmic-ray", "init", config, session),
        ("cr-filter-operators", session, config),
        ("cr-filter-lines", "--config", config, session),
        ("cosmic-ray", "exec", config, session),
    ):
        subprocess.run([tools / words[0], *words[1:]], cwd=tree, check=True)
    counted = {"killed": 0, "survived": 0, "skipped": 0, "broken": 0}
    said = subprocess.run(
        [str(tools / "cosmic-ray"), "dump", str(session)], cwd=tree, check=True, capture_output=True, text=True
    ).stdout
    for line in said.splitlines():
        item, result = json.loads(line)
        outcome = "skipped" if result is None or result["worker_outcome"] == "skipped" else result["test_outcome"]
        counted[outcome if outcome in counted else "broken"] += 1
        if outcome == "survived":
            (mutation,) = item["mutations"]
            sys.stdout.write(f"{module}:{mutation['start_pos'][0]}: {_difference(result['diff'] or '')}\n")
    sys.stdout.write(f"{module}: {', '.join(f'{count} {what}' for what, count in counted.items())}\n")
    sys.stdout.flush()


def lines(source: str) -> list[str]:
    """Return the lines of a module that are changed, as FIRST-LAST."""
    body = ast.parse(source).body
    if not any(isinstance(one, ast.AsyncFunctionDef) for one in body):
        return [f"1-{len(source.splitlines())}"]
    functions = [one for one in body if isinstance(one, ast.FunctionDef)]
    used = _names(functions)
    values = [one for one in body if isinstance(one, ast.Assign) and used & _names(one.targets)]
    return [f"{one.lineno}-{one.end_lineno}" for one in (*values, *functions)]


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for one in nodes for node in ast.walk(one) if isinstance(node, ast.Name)}


def _difference(diff: str) -> str:
    """Return the difference in a unified diff of one place, with some context."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
    before, after = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    same = _common(before, after)
    rest = _common(before[same:][::-1], after[same:][::-1])
    changed = f"[{before[same : len(before) - rest]} -> {after[same : len(after) - rest]}]"
    return f"{before[max(0, same - _CONTEXT) : same]}{changed}{before[len(before) - rest :][:_CONTEXT]}"


def _common(one: str, other: str) -> int:
    """Return the length of the common prefix."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
