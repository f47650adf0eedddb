"""Runs fuzzing processes side by side, collects their findings, and notices those that hang or die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests.fuzz import worker
from tests.fuzz.state import State
from tests.fuzz.watch import Finding

_POLL_S = 0.2
# CPU time on one input that counts as a hang; more than 1 s is a finding by itself.
_HANG_S = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True, kw_only=True)
class Report:
    """One target's result over all rounds. Memory in bytes: the largest growth of a round after its first tenth."""

    target: str
    inputs: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0
    slowest_bytes: int = 0
    grown_bytes: int = 0
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)

    def find(self, finding: Finding) -> None:
        self.findings.setdefault((finding.kind, finding.place), finding)


@dataclass(slots=True, kw_only=True)
class Job:
    """One round of a target, in a process of its own."""

    report: Report
    folder: Path
    pid: int
    state: State
    seen: int = 0  # the current input, and the CPU time at its start
    seen_s: float = 0.0

    def cpu_s(self) -> float:
        """Return user and system time (proc(5)), or 0 if the process has ended."""
        try:
            words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(words[11]) + int(words[12])) / _TICKS

    def hangs(self) -> bool:
        """Return whether the process has spent too long on one input."""
        number, cpu_s = self.state.number, self.cpu_s()
        if number != self.seen:
            self.seen, self.seen_s = number, cpu_s
        return number > 0 and cpu_s - self.seen_s > _HANG_S

    def ended(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG)[0] != 0

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@contextmanager
def work_folder() -> Iterator[Path]:
    """Make a folder for input files, in memory if possible."""
    above = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="testbed-fuzz-", dir=above if os.access(above, os.W_OK) else None
    ) as folder:
        yield Path(folder)


class Runner:
    """Keeps as many processes busy as there are cores."""

    def __init__(self, folder: Path, cores: int, note: Callable[[str], None]) -> None:
        self._folder, self._cores, self._note = folder, cores, note
        self._count = 0
        self.jobs: list[Job] = []

    @property
    def full(self) -> bool:
        return len(self.jobs) >= self._cores

    def start(self, report: Report, inputs: int, seed: int) -> None:
        self._count += 1
        folder = self._folder / f"{report.target}-{self._count}"
        (folder / "tmp").mkdir(parents=True)
        state = State.of(folder)
        pid = os.fork()
        if pid == 0:
            _child(report.target, inputs, seed, folder)
        self.jobs.append(Job(report=report, folder=folder, pid=pid, state=state))

    def wait(self) -> None:
        """Wait until something may have changed; collect processes that have ended."""
        time.sleep(_POLL_S)
        for job in tuple(self.jobs):
            if job.ended():
                self._take(job)
            elif job.hangs():
                job.stop()
                self._lost(job, "hang", f"no end after {_HANG_S:.0f} s of CPU time")
                self._take(job)

    def stop(self) -> None:
        """Stop all processes; their results so far count."""
        for job in tuple(self.jobs):
            job.stop()
            self._take(job, stopped=True)

    def _take(self, job: Job, *, stopped: bool = False) -> None:
        self.jobs.remove(job)
        said = job.folder / "said.jsonl"
        lines: list[dict[str, Any]] = (
            [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
        )
        for line in lines:
            if found := line.get("finding"):
                job.report.find(Finding(**{**found, "data": bytes.fromhex(found["data"])}))
        ends = [line for line in lines if "inputs" in line]
        for end in ends:
            job.report.cpu_s += end["cpu_s"]
            job.report.slowest_s, job.report.slowest_bytes = max(
                (job.report.slowest_s, job.report.slowest_bytes), (end["slowest_s"], end["slowest_bytes"])
            )
            job.report.grown_bytes = max(job.report.grown_bytes, end["end_bytes"] - end["warm_bytes"])
        job.report.inputs += job.state.number
        if not ends and not stopped and not job.report.findings:
            self._lost(job, "died", "the process ended")
        shutil.rmtree(job.folder)
        found = "; ".join(f"{kind} {place}".rstrip() for kind, place in job.report.findings) or "nothing found"
        self._note(f"{job.report.target}: {job.report.inputs} inputs, {found}")

    def _lost(self, job: Job, kind: str, why: str) -> None:
        log = (job.folder / "log").read_text(errors="replace")[-2000:]
        job.report.find(
            Finding(target=job.report.target, kind=kind, place="", told=f"{why}\n{log}", data=job.state.data)
        )


def _child(target: str, inputs: int, seed: int, folder: Path) -> NoReturn:
    """Run a child process; never returns."""
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT, 0o600)
        for standard in (1, 2):
            os.dup2(log, standard)
        tempfile.tempdir = str(folder / "tmp")
        worker.run(target, inputs, seed, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
