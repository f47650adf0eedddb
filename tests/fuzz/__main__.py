"""Runs `./tb fuzz [--minutes N] [--target T]... [--inputs N] [--seed S] [--output FOLDER]`, and `./tb fuzz --play
FILE`.

Each target gets at least `--inputs` inputs; more rounds fill the minutes. Exits with 1 if something was found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["testbed"], enable_loader_override=False):
    from tests.fuzz import watch
    from tests.fuzz.jobs import Report, Runner, work_folder
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.watch import FLAT_BYTES, ROOT, Finding

_MIB = 1 << 20
_HASHES = "PYTHONHASHSEED"


def main(argv: list[str]) -> int:
    """Run `./tb fuzz` with these arguments; return its exit status."""
    parser = argparse.ArgumentParser(prog="tb fuzz", description="Fuzzes the parsers of untrusted input.")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="how long to continue after each target has had its inputs (10)"
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="at least this many for each target (100000)")
    parser.add_argument(
        "--target", action="append", choices=sorted(TARGETS), help="only this target; may be given several times"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same inputs (1)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "fuzz-findings", help="where findings are written (fuzz-findings)"
    )
    parser.add_argument(
        "--play", type=Path, metavar="FILE", help="parse one input again, FOLDER/TARGET/FILE, and print the result"
    )
    told = parser.parse_args(argv)
    if told.play is not None:
        return _play(told.play.absolute())
    reports = _fuzzed(told.target or list(TARGETS), told.inputs, told.seed, told.minutes * 60)
    findings = [finding for report in reports for finding in report.findings.values()]
    _write("\n" + table(reports))
    for finding in findings:
        file = told.output / finding.target / finding.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(finding.data)
        _write(
            f"\n{finding.target}: {finding.kind}: {finding.place}\n{finding.told.rstrip()}\n"
            f"  again: ./tb fuzz --play {_shown(file)}"
        )
    grown = [report.target for report in reports if report.grown_bytes > FLAT_BYTES]
    if grown:
        _write(f"\nmemory grew by more than {FLAT_BYTES // _MIB} MiB after the first tenth: {', '.join(grown)}")
    return 1 if findings or grown else 0


def _fuzzed(names: list[str], inputs: int, seed: int, seconds: float) -> list[Report]:
    """Run a round of each target, and rounds with other seeds until the time is over."""
    reports = {name: Report(target=name) for name in names}
    until = time.monotonic() + seconds
    with work_folder() as folder:
        runner = Runner(folder, len(os.sched_getaffinity(0)), _write)
        waiting = [(report, seed) for report in reports.values()]
        rounds = 1
        try:
            while True:
                if not waiting and time.monotonic() < until:
                    rounds += 1
                    waiting = [(report, seed + rounds - 1) for report in reports.values()]
                while waiting and not runner.full:
                    report, with_seed = waiting.pop(0)
                    runner.start(report, inputs, with_seed)
                runner.wait()
                if time.monotonic() >= until and (rounds > 1 or (not waiting and not runner.jobs)):
                    break
        except KeyboardInterrupt:
            _write("interrupted; what was found so far:")
        finally:
            runner.stop()
    return list(reports.values())


def table(reports: list[Report]) -> str:
    """Return a line for each target. Times are CPU time of the process, which other programs do not change."""
    rows = [("target", "inputs", "CPU s", "inputs/CPU s", "findings", "slowest input", "memory grew by")]
    for one in reports:
        each = f"{one.inputs / one.cpu_s:.0f}" if one.cpu_s else "?"
        slowest = f"{one.slowest_s:.3f} s ({one.slowest_bytes} bytes)"
        found = str(len(one.findings))
        rows.append(
            (one.target, str(one.inputs), f"{one.cpu_s:.0f}", each, found, slowest, f"{one.grown_bytes / _MIB:.1f} MiB")
        )
    total = (
        sum(one.inputs for one in reports),
        sum(one.cpu_s for one in reports),
        sum(len(one.findings) for one in reports),
    )
    rows.append(("all", str(total[0]), f"{total[1]:.0f}", "", str(total[2]), "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _play(file: Path) -> int:
    target = TARGETS.get(file.parent.name)
    if target is None or not file.is_file():
        _write(f"tb fuzz: {file}: expected a file in a folder with the name of a target: {', '.join(TARGETS)}")
        return 2
    seen = watch.look(target, file.read_bytes())
    _write(f"{seen.cpu_s:.3f} s" + (f"\n{_told(seen.finding)}" if seen.finding else ", nothing is wrong with it"))
    return 1 if seen.finding else 0


def _told(finding: Finding) -> str:
    return f"{finding.kind}: {finding.place}\n{finding.told}"


def _shown(file: Path) -> Path:
    return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _still(argv: list[str]) -> None:
    """Start again with a fixed hash seed and, if allowed, fixed addresses: both influence the choice of inputs."""
    if os.environ.get(_HASHES) != "0":
        still = ("setarch", "-R")
        can = (
            shutil.which(still[0])
            and subprocess.run([*still, "true"], capture_output=True, check=False).returncode == 0
        )
        words = [*(still if can else ()), sys.executable, "-m", "tests.fuzz", *argv]
        os.execvpe(words[0], words, {**os.environ, _HASHES: "0"})


if __name__ == "__main__":
    _still(sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
