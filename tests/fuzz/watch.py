"""Gives one input to a parser and measures its errors, CPU time and memory."""

from __future__ import annotations

import gc
import hashlib
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.text import printable
from tests.fuzz.targets import Target

ROOT = Path(__file__).parents[2]
MOST_CPU_S = 1.0
# What one input may take beyond the previous peak of the process, and all inputs together after the first tenth.
MOST_BYTES = 64 << 20
FLAT_BYTES = 32 << 20
_SMALLER_S = 5.0
_MOST_TRIES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`kind`: exception, slow, memory, hang or died; `place`: groups inputs with the same error; `told`: for people."""

    target: str
    kind: str
    place: str
    told: str
    data: bytes

    @property
    def name(self) -> str:
        """Return its file name: the same for the same place."""
        return f"{self.kind}-{hashlib.sha256(f'{self.kind} {self.place}'.encode()).hexdigest()[:10]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One input's CPU time, and its finding, if any."""

    cpu_s: float
    finding: Finding | None


def look(target: Target, data: bytes) -> Seen:
    """Parse an input. A measurement above a limit is repeated, and the least counts: a garbage collection may fall in
    between.
    """
    seen = _once(target, data)
    if seen.finding is None or seen.finding.kind != "slow":
        return seen
    return min((seen, *(_once(target, data) for _ in range(2))), key=lambda one: one.cpu_s)


def _once(target: Target, data: bytes) -> Seen:
    peak = _peak_bytes()
    wrong: Exception | None = None
    began = time.process_time()
    try:
        target.read(data)
    except target.refusals as error:
        wrong = (
            None
            if printable(str(error)) == str(error)
            else ValueError(f"its message contains terminal control codes: {str(error)!r}")
        )
    except Exception as error:
        wrong = error
    cpu_s = time.process_time() - began
    grown = _peak_bytes() - peak
    finding: Finding | None = None
    if wrong is not None:
        told = "".join(traceback.format_exception(wrong, limit=-12))[-6000:]
        finding = Finding(target=target.name, kind="exception", place=_place(wrong), told=told, data=data)
    elif cpu_s > MOST_CPU_S:
        finding = Finding(
            target=target.name,
            kind="slow",
            place="",
            told=f"{cpu_s:.2f} s of CPU time for {len(data)} bytes",
            data=data,
        )
    elif grown > MOST_BYTES:
        finding = Finding(
            target=target.name, kind="memory", place="", told=f"{grown >> 20} MiB for {len(data)} bytes", data=data
        )
    return Seen(cpu_s=cpu_s, finding=finding)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def resident_bytes() -> int:
    """Return the resident memory of this process, without garbage."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _place(error: BaseException) -> str:
    """Return the kind of an error, and the last function of the testbed in its traceback."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT / "testbed"))
    ]
    where = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].name}" if frames else "tests"
    return f"{type(error).__name__} in {where}"


def smallest(finding: Finding, target: Target, *, looks: Callable[[Target, bytes], Seen] = look) -> Finding:
    """Return the finding with a smaller input: drop pieces while the finding stays the same, in some hundred tries
    (ddmin, A. Zeller 2002).

    It ends early if that takes long; otherwise the parent process would report a hang.
    """
    best, tries, until_s = finding, _MOST_TRIES if finding.kind == "exception" else 12, time.process_time() + _SMALLER_S
    size = max(1, len(best.data) // 2)
    while tries > 0 and time.process_time() < until_s:
        at, changed = 0, False
        while at < len(best.data) and tries > 0 and time.process_time() < until_s:
            tries -= 1
            smaller = best.data[:at] + best.data[at + size :]
            found = looks(target, smaller).finding
            if found is not None and (found.kind, found.place) == (best.kind, best.place):
                best, changed = replace(found, data=smaller), True
            else:
                at += size
        if size == 1 and not changed:
            break
        size = max(1, size // 2)
    return best
