"""Tries a bug on kernels, in as many guests at once as fit, until it is known whether the bug shows there and how
often."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.bugs import absence, statistics
from testbed.bugs.attempt import AttemptSpec, HoldGuest, run_attempt
from testbed.bugs.kernel_tries import KernelTries, KernelVerdict
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

# After this many tries in a row without a result, the next ones would have none either.
_TROUBLES_IN_A_ROW = 3
# A clean kernel is tried so often that a bug of the stated rate would be missed with this probability.
_MISSED = 0.05


# Takes the rate so far, the number of running tries, and the most tries that can have a result; returns whether these
# tries are enough.
Rule = Callable[[Rate, int, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """When to stop. `tries`: the limit on each kernel. `until`: go on after a hit until the lower bound of the rate's
    interval reaches this value, or cannot any more. `every`: all tries, whatever they show. `rule`: go on until the
    rule says that it is enough. `jobs`: guests at once; None: as many as fit.
    """

    tries: int
    timeout_s: float
    until: float | None = None
    every: bool = False
    rule: Rule | None = None
    jobs: int | None = None

    @property
    def waits_for_running(self) -> bool:
        """Whether running tries are awaited once the ended ones are enough, so that quick tries do not bias the
        rate."""
        return self.until is not None or self.rule is not None


# Takes the tries on a kernel so far, and the try that has just ended.
OnTry = Callable[[KernelTries, Try], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproJob:
    """A bug to reproduce. `hold`: called with the first guest that shows it, while the other tries are cancelled.
    `on_try`: called at the end of each try. `folder`: the folder of the run."""

    factory: GuestFactory
    case: Case
    limits: StopRule
    seed: int
    folder: Path
    on_try: OnTry
    hold: HoldGuest | None = None
    paused: bool = False
    dump: bool = False


def default_jobs(host: Host, case: Case) -> int:
    """Return how many guests of a bug run at once by default."""
    return admission.most_at_once(Cores(case.bug.cores), host, case.guest.memory)


def clean_tries(shown: Iterable[KernelTries], limits: StopRule, rate: float) -> int:
    """Return how many tries without a hit a kernel needs on which the bug must not show, at most the limit: enough to
    tell it apart from each kernel on which the bug has `shown`, and enough to see a bug of the stated `rate`."""
    found = tuple(one.rate for one in shown)
    needed = [absence.fewest_misses(one) or limits.tries for one in found]
    if limits.every or limits.until is not None:
        needed += [one.tries for one in found]
    return min(limits.tries, max(*needed, statistics.tries_for(rate, _MISSED)))


def distinct_names(kernels: Iterable[KernelFiles]) -> tuple[KernelFiles, ...]:
    """Give kernels distinct names of plain characters, which name folders and appear in bundles. Different files of the
    same name get their hash appended."""
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
    """Return the kernels of both sides, each once, with distinct names.

    :raise UsageError: a kernel is on both sides.
    """
    must, must_not = (
        tuple({one.sha256: one for one in shows}.values()),
        tuple({one.sha256: one for one in clean}.values()),
    )
    for one in must:
        for other in must_not:
            if one.sha256 == other.sha256:
                raise UsageError(
                    f"kernels {one.name} and {other.name}: expected it to show on one of them only, they are the same"
                    " kernel"
                )
    named = distinct_names((*must, *must_not))
    return named[: len(must)], named[len(must) :]


async def reproduce(
    job: ReproJob, shows: tuple[KernelFiles, ...], clean: tuple[KernelFiles, ...]
) -> tuple[KernelTries, ...]:
    """Try the bug on each kernel where it must show, then on each that must be clean. Ends after a kernel whose guest
    was held.

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
        # One hit decides.
        limits = replace(
            job.limits, until=None, rule=lambda rate, running, _: rate.hits > 0 or rate.tries + running >= least
        )
    for kernel in clean:
        found.append(await try_kernel(replace(job, limits=limits, hold=None), kernel, must_show=False))
    return tuple(found)


def _shown_enough(rate: Rate, running: int, most: int) -> bool:
    """Whether as many tries tell another kernel apart, counting running tries as hits; or whether no number of tries
    can any more."""
    return absence.has_enough_tries(Rate(hits=rate.hits + running, tries=rate.tries + running), most)


async def try_kernel(job: ReproJob, kernel: KernelFiles, *, must_show: bool) -> KernelTries:
    """Try on one kernel until the limits say that it is enough.

    :raise HostError: this machine cannot run the guests.
    """
    await job.factory.prepare(job.case.guest, kernel)
    return await TryLoop(job, kernel, must_show=must_show).run()


class TryLoop:
    """The tries on one kernel: starts as many at once as the limits allow, until these say that it is enough."""

    def __init__(self, job: ReproJob, kernel: KernelFiles, *, must_show: bool) -> None:
        self._job, self._limits, self._kernel, self._must_show = job, job.limits, kernel, must_show
        self._most_at_once = job.limits.jobs or default_jobs(job.factory.host, job.case)
        self._began = time.monotonic()
        self._tries: list[Try] = []
        self._first_hit_s: float | None = None
        self._running: set[asyncio.Task[Try]] = set()
        self._started = 0
        self._holding = False

    async def run(self) -> KernelTries:
        """Try until it is enough; cancels the tries that still run then.

        :raise HostError: this machine cannot run the guests.
        """
        try:
            while True:
                self._start_tries()
                if not self._running:
                    break
                done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                self._collect(done)
                # A held try ends by itself.
                if not self._holding and self._may_stop():
                    break
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        return self._so_far(ended=True)

    def _start_tries(self) -> None:
        # The stopping rule must hold for the running tries as well, or new ones would be started for nothing.
        while (
            self._started < self._limits.tries
            and len(self._running) < self._most_at_once
            and not self._holding
            and not _is_enough(self._limits, self._tries, len(self._running))
        ):
            self._started += 1
            hold = functools.partial(self._hold, self._started) if self._job.hold else None
            self._running.add(asyncio.create_task(run_attempt(self._spec(self._started, hold))))

    def _collect(self, done: Iterable[asyncio.Task[Try]]) -> None:
        """Record the tries that have ended. Cancelled ones were stopped for the held one; results count before an error
        ends all.

        :raise HostError: this machine cannot run the guests.
        """
        whole = [task for task in done if not task.cancelled()]
        for task in sorted(whole, key=lambda task: task.exception() is not None):
            one = task.result()
            if one.outcome is Outcome.HIT and self._first_hit_s is None:
                self._first_hit_s = time.monotonic() - self._began
            self._record(one)

    def _may_stop(self) -> bool:
        if _is_hopeless(self._tries):
            return True
        return not self._limits.waits_for_running and _is_enough(self._limits, self._tries, len(self._running))

    def _record(self, one: Try) -> None:
        """Add a try; the result of a held try replaces what was recorded when its hold began."""
        self._tries[:] = [*(other for other in self._tries if other.number != one.number), one]
        self._job.on_try(self._so_far(ended=False), one)

    def _so_far(self, *, ended: bool) -> KernelTries:
        return KernelTries(
            kernel=self._kernel,
            must_show=self._must_show,
            tries=tuple(sorted(self._tries, key=lambda one: one.number)),
            took_s=time.monotonic() - self._began,
            first_hit_s=self._first_hit_s,
            stopped=self._first_hit_s is not None and not self._limits.every and self._limits.until is None,
            cut=self._started - len(self._tries),
            ended=ended,
        )

    async def _hold(self, number: int, guest: Guest, match: Match) -> None:
        """HoldGuest the first guest that shows the bug, and cancel the other tries. The hit is recorded before, however
        the hold ends."""
        self._holding, self._first_hit_s = True, time.monotonic() - self._began
        for task in self._running - {asyncio.current_task()}:
            task.cancel()
        self._record(_held_try(self._spec(number, None), match))
        assert self._job.hold is not None  # or nothing would call this
        await self._job.hold(guest, match)

    def _spec(self, number: int, hold: HoldGuest | None) -> AttemptSpec:
        job = self._job
        return AttemptSpec(
            factory=job.factory,
            bug=job.case.bug,
            guest=job.case.guest,
            kernel=self._kernel,
            number=number,
            seed=(job.seed + number) % (1 << 31),
            timeout_s=self._limits.timeout_s,
            logs=job.folder / "guests" / f"{self._kernel.name}-{number}",
            hold=hold,
            paused=job.paused,
            dump=job.dump,
        )


def _held_try(spec: AttemptSpec, match: Match) -> Try:
    """The result of a try whose guest is held: so far only that it shows the bug."""
    return Try(
        number=spec.number,
        seed=spec.seed,
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
        logs=spec.logs,
    )


def _is_hopeless(tries: list[Try]) -> bool:
    """Whether so many tries in a row were TROUBLE that the next ones would be as well."""
    last = tries[-_TROUBLES_IN_A_ROW:]
    return len(last) == _TROUBLES_IN_A_ROW and all(one.outcome is Outcome.TROUBLE for one in last)


def _is_enough(limits: StopRule, tries: list[Try], running: int) -> bool:
    """Whether the tries that have ended, and for a rule those that run, are all that is needed."""
    if _is_hopeless(tries):
        return True
    outcomes = [one.outcome for one in tries]
    hits = outcomes.count(Outcome.HIT)
    if limits.every:
        return len(tries) >= limits.tries
    rate = Rate(hits=hits, tries=hits + outcomes.count(Outcome.MISS))
    most = limits.tries - outcomes.count(Outcome.TROUBLE)
    if limits.until is not None:
        return statistics.until_rate(limits.until, rate, most) is not NextTry.GO_ON
    if limits.rule is not None:
        return limits.rule(rate, running, most)
    return hits > 0 or len(tries) >= limits.tries
