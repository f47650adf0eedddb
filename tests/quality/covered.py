"""Runs `./tb coverage`: which branches of the pure modules the unit tests take. Fails below 95 %."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.unit.test_architecture import NAMES, PURE, package

ROOT = Path(__file__).parents[2]
_LEAST_PERCENT = 95.0


def main() -> int:
    """Print a line for each module that is not fully covered, and the total."""
    # The topology language reads files; the rest of it is pure.
    files = [str(path.relative_to(ROOT)) for name, path in NAMES.items() if name in PURE or package(name) == "topology"]
    with tempfile.TemporaryDirectory(prefix="testbed-coverage-") as folder:
        data = f"--data-file={folder}/data"
        run = [
            "run",
            "--branch",
            data,
            f"--include={','.join(files)}",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/unit",
            "tests/security",
        ]
        ended = subprocess.run([sys.executable, "-m", "coverage", *run], cwd=ROOT, check=False)
        if ended.returncode != 0:
            return ended.returncode
        subprocess.run(
            [sys.executable, "-m", "coverage", "json", "-q", data, "-o", f"{folder}/json"], cwd=ROOT, check=True
        )
        found = json.loads((Path(folder) / "json").read_text())
    unseen = set(files) - found["files"].keys()
    for name, one in sorted(found["files"].items()):
        summary = one["summary"]
        if summary["missing_lines"] or summary["missing_branches"]:
            missing = [f"{a}->{b}" if b > 0 else f"{a}->exit" for a, b in one["missing_branches"]]
            sys.stdout.write(
                f"{name}: {summary['percent_covered']:.1f} %: lines {one['missing_lines']}, "
                f"branches {' '.join(missing)}\n"
            )
    totals = found["totals"]
    branches = 100 * totals["covered_branches"] / totals["num_branches"]
    sys.stdout.write(
        f"{len(files)} modules: {branches:.1f} % of {totals['num_branches']} branches, "
        f"{100 * totals['covered_lines'] / totals['num_statements']:.1f} % of {totals['num_statements']} statements\n"
    )
    for name in sorted(unseen):
        sys.stdout.write(f"{name}: never imported\n")
    return 1 if branches < _LEAST_PERCENT or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
