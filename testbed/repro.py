"""Runs a bug on kernels, as many guests at once as fit, until it is known whether it shows there; and says how often."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed import rates, runner
from testbed.bugs.model import Case
from testbed.host import Host
from testbed.lab import Lab
from testbed.rates import Next, Rate
from testbed.store import runs
from testbed.store.kernel_files import KernelFiles
from testbed.trial import Attempt, Hold, Outcome, Try, attempt, said

# Guests that mostly wait share the host's cores with this many others, if there is memory for them.
_MOST_IDLE = 24
# As many tries that came to nothing, one after the other, and the next would as well.
_TROUBLES_IN_A_ROW = 3
# A clean kernel is tried so often that a bug of the stated rate would be missed with this probability.
_MISSED = 0.05


class Verdict(enum.Enum):
    """Of one kernel: the bug SHOWS, was ABSENT in all tries, or nothing is known (TROUBLE)."""

    SHOWS = "shows"
    ABSENT = "absent"
    TROUBLE = "trouble"


class Result(enum.Enum):
    """Of a bug. INVALID: it shows on a kernel that must be clean, so its signature is no sign of it."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INVALID = "invalid"
    TROUBLE = "trouble"


EXIT_CODES = {Result.REPRODUCED: 0, Result.NOT_REPRODUCED: 1, Result.TROUBLE: 2, Result.INVALID: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to stop. `tries`: at most so many on each kernel. `until`: go on after a hit until the interval's lower bound reaches this, or
    cannot. `every`: all tries, whatever they show. `jobs`: guests at once; None: as many as fit.
    """

    tries: int
    timeout_s: float
    until: float | None = None
    every: bool = False
    jobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A bug on one kernel; `first_hit_s`: from the begin of the first try to the first hit, of this machine's time."""

    kernel: KernelFiles
    must_show: bool
    tries: tuple[Try, ...]
    took_s: float
    first_hit_s: float | None

    @property
    def rate(self) -> Rate:
        """Of the tries that came to something."""
        outcomes = [one.outcome for one in self.tries]
        hits = outcomes.count(Outcome.HIT)
        return Rate(hits=hits, tries=hits + outcomes.count(Outcome.MISS))

    @property
    def troubles(self) -> int:
        return sum(one.outcome is Outcome.TROUBLE for one in self.tries)

    @property
    def first_hit(self) -> int | None:
        """The number of the first try that hit."""
        return next((one.number for one in self.tries if one.outcome is Outcome.HIT), None)

    @property
    def median_hit_s(self) -> float | None:
        """Of the times from a script's start to its hit."""
        return rates.median([one.hit_after_s for one in self.tries if one.outcome is Outcome.HIT and one.hit_after_s is not None])

    @property
    def verdict(self) -> Verdict:
        if self.rate.hits:
            return Verdict.SHOWS
        return Verdict.TROUBLE if self.troubles or not self.tries else Verdict.ABSENT


OnTry = Callable[[str, Try], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A bug that is run. `hold`: what to do with the first guest that shows it, whose others go; `on_try` hears of each try's end."""

    lab: Lab
    case: Case
    limits: Limits
    seed: int
    folder: Path
    on_try: OnTry
    hold: Hold | None = None
    paused: bool = False
    dump: bool = False


def jobs(host: Host, case: Case) -> int:
    """How many of a bug's guests may run at once."""
    if case.bug.cores == "alone":
        return 1
    if case.bug.cores == "idle":
        return max(1, min(_MOST_IDLE, host.memory_free_bytes // 2 // case.guest.memory))
    return runner.slots(host, case.guest)


def clean_tries(shown: Iterable[Tried], limits: Limits, rate: float) -> int:
    """How often a kernel is tried where the bug must not show: as often as it took elsewhere, and often enough for its stated rate."""
    if limits.every or limits.until is not None:
        return max((one.rate.tries for one in shown), default=limits.tries)
    took = max((one.first_hit or len(one.tries) for one in shown), default=1)
    return min(limits.tries, max(took, rates.tries_for(rate, _MISSED)))


def result(tried: Iterable[Tried]) -> tuple[Result, str]:
    """What the kernels say together, and why."""
    found = tuple(tried)
    shows, clean = [one for one in found if one.must_show], [one for one in found if not one.must_show]
    wrong = [one.kernel.name for one in clean if one.verdict is Verdict.SHOWS]
    if wrong:
        everywhere = all(one.verdict is Verdict.SHOWS for one in found)
        return Result.INVALID, f"the signature shows on {', '.join(wrong)}, which must be clean" + (
            ": it shows everywhere, and is no sign of the bug" if everywhere else ""
        )
    troubled = [one.kernel.name for one in found if one.verdict is Verdict.TROUBLE]
    if troubled:
        return Result.TROUBLE, f"nothing is known of {', '.join(troubled)}: tries came to nothing there"
    absent = [one.kernel.name for one in shows if one.verdict is Verdict.ABSENT]
    if absent:
        return Result.NOT_REPRODUCED, f"it does not show on {', '.join(absent)}"
    where = ", ".join(one.kernel.name for one in shows)
    return Result.REPRODUCED, f"it shows on {where}" + (f" and not on {', '.join(one.kernel.name for one in clean)}" if clean else "")


async def reproduce(job: Job, shows: tuple[KernelFiles, ...], clean: tuple[KernelFiles, ...]) -> tuple[Tried, ...]:
    """The bug on each kernel where it must show, then on each that must be clean.

    :raise HostError: this machine cannot run the guests.
    """
    with runs.going_on(job.folder):
        found = [await on_kernel(job, kernel, must_show=True) for kernel in shows]
        least = clean_tries(found, job.limits, job.case.bug.rate)
        for kernel in clean:
            limits = replace(job.limits, tries=least, every=True, until=None)
            found.append(await on_kernel(replace(job, limits=limits, hold=None), kernel, must_show=False))
    return tuple(found)


async def on_kernel(job: Job, kernel: KernelFiles, *, must_show: bool) -> Tried:
    """Try on one kernel until the limits say that it is enough.

    :raise HostError: this machine cannot run the guests.
    """
    most = job.limits.jobs or jobs(job.lab.host, job.case)
    await job.lab.prepare(job.case.guest, kernel)
    begun = time.monotonic()
    tried: list[Try] = []
    first_hit_s: float | None = None
    running: set[asyncio.Task[Try]] = set()
    number = 0
    try:
        while True:
            # The rule must hold for the tries that run as well, or they would be started in vain.
            while number < job.limits.tries and len(running) < most and not _enough(job.limits, tried):
                number += 1
                running.add(asyncio.create_task(attempt(_wanted(job, kernel, number))))
            if not running:
                break
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                one = task.result()
                tried.append(one)
                job.on_try(kernel.name, one)
                if one.outcome is Outcome.HIT and first_hit_s is None:
                    first_hit_s = time.monotonic() - begun
            if _enough(job.limits, tried):
                break
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    tries = tuple(sorted(tried, key=lambda one: one.number))
    return Tried(kernel=kernel, must_show=must_show, tries=tries, took_s=time.monotonic() - begun, first_hit_s=first_hit_s)


def _wanted(job: Job, kernel: KernelFiles, number: int) -> Attempt:
    return Attempt(
        lab=job.lab,
        bug=job.case.bug,
        guest=job.case.guest,
        kernel=kernel,
        number=number,
        seed=(job.seed + number) % (1 << 31),
        timeout_s=job.limits.timeout_s,
        evidence=job.folder / "guests" / f"{kernel.name.replace('/', '-')}-{number}",
        hold=job.hold,
        paused=job.paused,
        dump=job.dump,
    )


def _enough(limits: Limits, tried: list[Try]) -> bool:
    """Whether the tries so far say all that is wanted."""
    outcomes = [one.outcome for one in tried]
    if len(tried) >= _TROUBLES_IN_A_ROW and all(one is Outcome.TROUBLE for one in outcomes[-_TROUBLES_IN_A_ROW:]):
        return True
    hits = outcomes.count(Outcome.HIT)
    if limits.every:
        return len(tried) >= limits.tries
    if limits.until is not None:
        rate = Rate(hits=hits, tries=hits + outcomes.count(Outcome.MISS))
        return rates.until(limits.until, rate, limits.tries - outcomes.count(Outcome.TROUBLE)) is not Next.GO_ON
    return hits > 0 or len(tried) >= limits.tries


def document(job: Job, tried: tuple[Tried, ...], command: list[str], took_s: float) -> dict[str, Any]:
    """What `repro.json` says."""
    verdict, why = result(tried)
    lab, bug = job.lab, job.case.bug
    return {
        "version": 1,
        "run": job.folder.name,
        "result": verdict.value,
        "reason": why,
        "command": command,
        "bug": {"summary": bug.summary, "source": bug.source, "signature": [one.said() for one in bug.signature]},
        "seed": job.seed,
        "limits": {
            "tries": job.limits.tries,
            "timeout_s": job.limits.timeout_s,
            "until": job.limits.until,
            "jobs": job.limits.jobs or jobs(lab.host, job.case),
        },
        "host": {
            "kernel": lab.host.kernel,
            "cores": lab.host.cores,
            "qemu": lab.host.qemu.version,
            "qemu_identity": lab.host.qemu.identity,
            "accelerator": lab.host.accelerator,
        },
        "image": {"name": lab.image.name, "sha256": lab.image.sha256},
        "took_s": round(took_s, 3),
        "kernels": [_kernel(one) for one in tried],
    }


def _kernel(one: Tried) -> dict[str, Any]:
    kernel, rate = one.kernel, one.rate
    return {
        "name": kernel.name,
        "release": kernel.release,
        "origin": kernel.origin,
        "sha256": kernel.sha256,
        "cached": kernel.folder.name,
        "must_show": one.must_show,
        "verdict": one.verdict.value,
        "hits": rate.hits,
        "tries": rate.tries,
        "troubles": one.troubles,
        "rate": round(rate.share, 4),
        "interval": [round(rate.low, 4), round(rate.high, 4)],
        "first_hit": one.first_hit,
        "first_hit_s": None if one.first_hit_s is None else round(one.first_hit_s, 3),
        "median_hit_s": None if one.median_hit_s is None else round(one.median_hit_s, 3),
        "took_s": round(one.took_s, 3),
        "attempts": [said(attempt) for attempt in one.tries],
    }
