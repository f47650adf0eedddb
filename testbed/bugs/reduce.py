"""Reduces a bug: drops the parts of its guest without which it still shows as often, trying each candidate in many
guests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from testbed.bugs import ddmin, repro, statistics
from testbed.bugs.ddmin import Part
from testbed.bugs.kernel_tries import KernelTries
from testbed.bugs.load import parse_mapping
from testbed.bugs.model import Case
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.repro import ReproJob, StopRule
from testbed.bugs.statistics import Sequential
from testbed.errors import TopologyError
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import trust

# A sequential test of two rates that are close to each other could go on without end.
_MOST_TRIES = 60
# Tries that measure a rate which the bug file does not state.
MEASURED_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A candidate: `what` was changed in the bug, whether the bug still showed (`kept`), in how many tries, and the
    folder of its guests. `why`: the candidate is no valid bug."""

    what: str
    kept: bool
    hits: int = 0
    tries: int = 0
    why: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """`plain`: the smaller bug, None where the bug does not show at all. `dropped`: what it lacks, in words; `whole`:
    tries of the unchanged bug; `guests`: how many guests were started."""

    plain: dict[str, Any] | None
    dropped: tuple[str, ...] = ()
    whole: KernelTries
    steps: tuple[Step, ...] = ()
    guests: int


OnStep = Callable[[str], None]


class Reducer:
    """Reduces one bug on one kernel."""

    def __init__(self, job: ReproJob, kernel: KernelFiles, error: float, on_step: OnStep) -> None:
        self._job, self._kernel, self._error, self._on_step = job, kernel, error, on_step
        self._guests = self._candidates = 0
        self._steps: list[Step] = []
        self._whole = KernelTries(kernel=kernel, must_show=True, tries=(), took_s=0, first_hit_s=None, ended=False)
        self._smallest: tuple[dict[str, Any] | None, tuple[str, ...]] = None, ()

    @property
    def so_far(self) -> Reduced:
        """The smallest bug so far that still shows, and the tries and steps that have ended."""
        plain, dropped = self._smallest
        return Reduced(plain=plain, dropped=dropped, whole=self._whole, steps=tuple(self._steps), guests=self._guests)

    async def reduce(self, plain: dict[str, Any], tries: int) -> Reduced:
        """Reduce the bug `plain`. `tries`: how many measure the rate of the unchanged bug.

        :raise HostError: this machine cannot run the guests.
        """
        limits = replace(self._job.limits, tries=tries, every=True, until=None)
        self._whole = await repro.try_kernel(
            replace(self._job, limits=limits, on_try=self._on_whole), self._kernel, must_show=True
        )
        self._on_step(f"as it is: {self._whole.rate}")
        if not self._whole.rate.hits:
            return self.so_far
        self._smallest = plain, ()
        every = ddmin.list_parts(plain)
        gone: tuple[Part, ...] = ()
        search = ddmin.minimize(every)
        try:
            wanted = next(search)
            while True:
                what = ", ".join(str(part) for part in wanted)
                without = ddmin.without_parts(plain, wanted)
                wanted = search.send(await self._shows(without, f"without {what}", tuple(map(str, wanted))))
        except StopIteration as end:
            gone = end.value
        plain = ddmin.without_parts(plain, gone) if gone else plain
        self._smallest = plain, tuple(map(str, gone))
        await self._smaller_machine(plain, self._smallest[1])
        return self.so_far

    def _on_whole(self, tried: KernelTries, one: Try) -> None:
        self._whole = tried
        self._guests += 1
        self._job.on_try(tried, one)

    async def _smaller_machine(self, plain: dict[str, Any], gone: tuple[str, ...]) -> None:
        said: list[str] = []
        refused: set[str] = set()
        while True:
            step = next((step for step in ddmin.smaller_machines(plain) if step[0] not in refused), None)
            if step is None:
                return
            what, smaller = step
            then = [one for one in said if one.split(":")[0] != what.split(":")[0]] + [what]
            if await self._shows(smaller, f"with {what}", (*gone, *then)):
                plain, said = smaller, then
            else:
                refused.add(what)

    async def _shows(self, plain: dict[str, Any], what: str, dropped: tuple[str, ...]) -> bool:
        """Whether a candidate shows the bug about as often as before; an invalid bug does not. `dropped`: all that it
        lacks."""
        try:
            # A part of a trusted bug is trusted.
            case = parse_mapping(plain, sources=trust.sources_of(self._job.case.guest.qemu_args))
        except TopologyError as error:
            self._steps.append(Step(what=what, kept=False, why=error.problems[0].message))
            self._on_step(f"{what}: cannot be: {error.problems[0].message}")
            return False
        self._candidates += 1
        test = statistics.sequential(self._whole.rate, self._error)
        number = 0
        while test.verdict is None and number < _MOST_TRIES:
            number += 1
            await self._batch(case, test, number)
        kept, tries = bool(test.verdict), test.hits + test.misses
        self._steps.append(
            Step(what=what, kept=kept, hits=test.hits, tries=tries, folder=f"candidate-{self._candidates}")
        )
        if kept:
            self._smallest = plain, dropped
        self._on_step(f"{what}: {'still shows' if kept else 'does not show as often'} ({test.hits} of {tries})")
        return kept

    async def _batch(self, case: Case, test: Sequential, number: int) -> None:
        """Try in as many guests as run at once; tries without a result count as misses."""
        most = self._job.limits.jobs or repro.default_jobs(self._job.factory.host, case)
        folder = self._job.folder / f"candidate-{self._candidates}" / str(number)
        limits = StopRule(tries=most, timeout_s=self._job.limits.timeout_s, every=True, jobs=most)
        tried = await repro.try_kernel(
            replace(self._job, case=case, limits=limits, folder=folder), self._kernel, must_show=True
        )
        self._guests += len(tried.tries)
        for one in tried.tries:
            if test.verdict is None:
                test.add(one.outcome is Outcome.HIT)
