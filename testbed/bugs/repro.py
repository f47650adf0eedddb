"""Runs a bug on kernels, as many guests at once as fit, until it is known whether it shows there; and says how often."""

from __future__ import annotations

import asyncio
import enum
import functools
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.bugs import absence, statistics
from testbed.bugs.attempt import Attempt, Hold, attempt
from testbed.bugs.model import Case
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.signature import End, Match
from testbed.bugs.statistics import NextTry, Rate
from testbed.errors import UsageError
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.host import admission
from testbed.host.admission import Cores
from testbed.host.facts import Host
from testbed.store.kernels.kernel_files import KernelFiles

# As many tries that came to nothing, one after the other, and the next would as well.
_TROUBLES_IN_A_ROW = 3
# A clean kernel is tried so often that a bug of the stated rate would be missed with this probability.
_MISSED = 0.05


class KernelVerdict(enum.Enum):
    """Of one kernel: the bug SHOWS, was ABSENT in all tries, or nothing is known (TROUBLE)."""

    SHOWS = "shows"
    ABSENT = "absent"
    TROUBLE = "trouble"


# Takes the rate so far, how many tries run, and how many may come to something at most; returns whether these tries are enough.
Rule = Callable[[Rate, int, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """When to stop. `tries`: at most so many on each kernel. `until`: go on after a hit until the interval's lower bound reaches this, or
    cannot. `every`: all tries, whatever they show. `rule`: go on until it is enough. `jobs`: guests at once; None: as many as fit.
    """

    tries: int
    timeout_s: float
    until: float | None = None
    every: bool = False
    rule: Rule | None = None
    jobs: int | None = None

    @property
    def awaits(self) -> bool:
        """Whether tries that run are awaited where those before are enough, so that quick ones are not ahead of the others."""
        return self.until is not None or self.rule is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTries:
    """A bug on one kernel; `first_hit_s`: from the begin of the first try to the first hit, of this machine's time.

    `stopped`: the hits chose the number of tries. `cut`: tries that ran then, of which nobody knows what they would have shown. `ended`:
    no more tries were to come.
    """

    kernel: KernelFiles
    must_show: bool
    tries: tuple[Try, ...]
    took_s: float
    first_hit_s: float | None
    stopped: bool = False
    cut: int = 0
    ended: bool = True

    @property
    def rate(self) -> Rate:
        """Of the tries that came to something."""
        outcomes = [one.outcome for one in self.tries]
        hits = outcomes.count(Outcome.HIT)
        return Rate(hits=hits, tries=hits + outcomes.count(Outcome.MISS))

    @property
    def interval(self) -> tuple[float, float]:
        """Of the rate, at 95 %. Tries that were stopped at a hit, by which quick ones are ahead, say less: then every one that was cut
        short may have been either."""
        rate = self.rate
        if not self.stopped:
            return rate.low, rate.high
        return statistics.exact_interval(rate.hits, rate.hits + self.cut, rate.tries + self.cut)

    @property
    def words(self) -> str:
        """Its rate."""
        if not self.stopped:
            return str(self.rate)
        low, high = self.interval
        at = "a hit" if self.rate.hits == 1 else f"{self.rate.hits} hits"
        return f"{self.rate.hits} of {self.rate.tries}, stopped at {at} (95 % interval {low:.0%} to {high:.0%})"

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
        return statistics.median(
            [one.hit_after_s for one in self.tries if one.outcome is Outcome.HIT and one.hit_after_s is not None]
        )

    @property
    def verdict(self) -> KernelVerdict:
        if self.rate.hits:
            return KernelVerdict.SHOWS
        return KernelVerdict.TROUBLE if self.troubles or not self.tries or not self.ended else KernelVerdict.ABSENT


# Takes the tries on a kernel so far, and the one of them that has just ended.
OnTry = Callable[[KernelTries, Try], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproJob:
    """A bug that is run. `hold`: what to do with the first guest that shows it, whose others go; `on_try`: called at each try's end."""

    factory: GuestFactory
    case: Case
    limits: StopRule
    seed: int
    folder: Path
    on_try: OnTry
    hold: Hold | None = None
    paused: bool = False
    dump: bool = False


def default_jobs(host: Host, case: Case) -> int:
    """How many of a bug's guests may run at once."""
    return admission.most_at_once(Cores(case.bug.cores), host, case.guest.memory)


def clean_tries(shown: Iterable[KernelTries], limits: StopRule, rate: float) -> int:
    """How many tries without a hit a kernel needs where the bug must not show, within the limit: until it is told apart from each on which
    it has `shown`, and so many that a bug of its stated `rate` would have been seen."""
    found = tuple(one.rate for one in shown)
    needed = [absence.fewest_misses(one) or limits.tries for one in found]
    if limits.every or limits.until is not None:
        needed += [one.tries for one in found]
    return min(limits.tries, max(*needed, statistics.tries_for(rate, _MISSED)))


def distinct_names(kernels: Iterable[KernelFiles]) -> tuple[KernelFiles, ...]:
    """Kernels whose names are plain words, which name folders and go along in bundles; of files of one name each has its hash in it."""
    found: dict[str, str] = {}
    said = []
    for one in kernels:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", one.name).lstrip("._-")[:100] or "kernel"
        if found.setdefault(name, one.sha256) != one.sha256:
            name = f"{name}-{one.sha256[:8]}"
        said.append(replace(one, name=name))
    return tuple(said)


def kernel_sides(
    shows: Iterable[KernelFiles], clean: Iterable[KernelFiles]
) -> tuple[tuple[KernelFiles, ...], tuple[KernelFiles, ...]]:
    """The kernels of both sides, each once.

    :raise UsageError: one is on both.
    """
    must, must_not = (
        tuple({one.sha256: one for one in shows}.values()),
        tuple({one.sha256: one for one in clean}.values()),
    )
    for one in must:
        for other in must_not:
            if one.sha256 == other.sha256:
                raise UsageError(
                    f"kernels {one.name} and {other.name}: expected it to show on one of them only, they are the same kernel"
                )
    named = distinct_names((*must, *must_not))
    return named[: len(must)], named[len(must) :]


async def reproduce(
    job: ReproJob, shows: tuple[KernelFiles, ...], clean: tuple[KernelFiles, ...]
) -> tuple[KernelTries, ...]:
    """The bug on each kernel where it must show, then on each that must be clean; no others after one whose guest was held.

    :raise HostError: this machine cannot run the guests.
    """
    found: list[KernelTries] = []
    limits = job.limits
    if clean and job.hold is None and not limits.every and limits.until is None:
        limits = replace(limits, rule=_shown_enough)
    for kernel in shows:
        found.append(await try_kernel(replace(job, limits=limits), kernel, must_show=True))
        if job.hold is not None and found[-1].verdict is KernelVerdict.SHOWS:
            return tuple(found)
    least = clean_tries(found, job.limits, job.case.bug.rate)
    if job.limits.every:
        limits = replace(job.limits, tries=least)
    else:
        # A hit is the answer.
        limits = replace(
            job.limits, until=None, rule=lambda rate, running, _: rate.hits > 0 or rate.tries + running >= least
        )
    for kernel in clean:
        found.append(await try_kernel(replace(job, limits=limits, hold=None), kernel, must_show=False))
    return tuple(found)


def _shown_enough(rate: Rate, running: int, most: int) -> bool:
    """Whether another kernel can be told apart by as many tries, if those that run are hits; or cannot be any longer."""
    return absence.has_enough_tries(Rate(hits=rate.hits + running, tries=rate.tries + running), most)


async def try_kernel(job: ReproJob, kernel: KernelFiles, *, must_show: bool) -> KernelTries:
    """Try on one kernel until the limits say that it is enough.

    :raise HostError: this machine cannot run the guests.
    """
    limits = job.limits
    most = limits.jobs or default_jobs(job.factory.host, job.case)
    await job.factory.prepare(job.case.guest, kernel)
    begun = time.monotonic()
    tried: list[Try] = []
    first_hit_s: float | None = None
    running: set[asyncio.Task[Try]] = set()
    number = 0
    holding = False

    def so_far(*, ended: bool) -> KernelTries:
        return KernelTries(
            kernel=kernel,
            must_show=must_show,
            tries=tuple(sorted(tried, key=lambda one: one.number)),
            took_s=time.monotonic() - begun,
            first_hit_s=first_hit_s,
            stopped=first_hit_s is not None and not limits.every and limits.until is None,
            cut=number - len(tried),
            ended=ended,
        )

    def known(one: Try) -> None:
        """What came of a try; of one that was held, in place of what was known then."""
        tried[:] = [*(other for other in tried if other.number != one.number), one]
        job.on_try(so_far(ended=False), one)

    async def hold(number: int, guest: Guest, match: Match) -> None:
        """The first that shows it is held; the others go. Whatever ends the hold, that it has shown is known."""
        nonlocal holding, first_hit_s
        holding, first_hit_s = True, time.monotonic() - begun
        for task in running - {asyncio.current_task()}:
            task.cancel()
        known(_held(_wanted(job, kernel, number, None), match))
        assert job.hold is not None  # or nobody would call this
        await job.hold(guest, match)

    try:
        while True:
            # The rule must hold for the tries that run as well, or they would be started in vain.
            while (
                number < limits.tries
                and len(running) < most
                and not holding
                and not _enough(limits, tried, len(running))
            ):
                number += 1
                running.add(
                    asyncio.create_task(
                        attempt(_wanted(job, kernel, number, functools.partial(hold, number) if job.hold else None))
                    )
                )
            if not running:
                break
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # Cancelled ones went for the one that is held; what came of the others counts before one that could not run ends all.
            whole = [task for task in done if not task.cancelled()]
            for task in sorted(whole, key=lambda task: task.exception() is not None):
                one = task.result()
                if one.outcome is Outcome.HIT and first_hit_s is None:
                    first_hit_s = time.monotonic() - begun
                known(one)
            # The one that is held has its own end.
            if not holding and (_hopeless(tried) or (not limits.awaits and _enough(limits, tried, len(running)))):
                break
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return so_far(ended=True)


def _wanted(job: ReproJob, kernel: KernelFiles, number: int, hold: Hold | None) -> Attempt:
    return Attempt(
        factory=job.factory,
        bug=job.case.bug,
        guest=job.case.guest,
        kernel=kernel,
        number=number,
        seed=(job.seed + number) % (1 << 31),
        timeout_s=job.limits.timeout_s,
        evidence=job.folder / "guests" / f"{kernel.name}-{number}",
        hold=hold,
        paused=job.paused,
        dump=job.dump,
    )


def _held(wanted: Attempt, match: Match) -> Try:
    """A try whose guest is held: that it shows the bug is all that is known of it yet."""
    return Try(
        number=wanted.number,
        seed=wanted.seed,
        outcome=Outcome.HIT,
        end=End.STOPPED,
        why=End.STOPPED.value,
        match=match,
        ready_s=0,
        took_s=0,
        hit_after_s=None,
        status=None,
        console_bytes=0,
        findings=(),
        evidence=wanted.evidence,
    )


def _hopeless(tried: list[Try]) -> bool:
    """Whether the next tries would come to nothing as well."""
    last = tried[-_TROUBLES_IN_A_ROW:]
    return len(last) == _TROUBLES_IN_A_ROW and all(one.outcome is Outcome.TROUBLE for one in last)


def _enough(limits: StopRule, tried: list[Try], running: int) -> bool:
    """Whether the tries so far, and for a rule those that run, say all that is wanted."""
    if _hopeless(tried):
        return True
    outcomes = [one.outcome for one in tried]
    hits = outcomes.count(Outcome.HIT)
    if limits.every:
        return len(tried) >= limits.tries
    rate, most = (
        Rate(hits=hits, tries=hits + outcomes.count(Outcome.MISS)),
        limits.tries - outcomes.count(Outcome.TROUBLE),
    )
    if limits.until is not None:
        return statistics.until_rate(limits.until, rate, most) is not NextTry.GO_ON
    if limits.rule is not None:
        return limits.rule(rate, running, most)
    return hits > 0 or len(tried) >= limits.tries
