"""Finds between which two kernels of an ordered list a bug came, or went, by trying it on one kernel after the
other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.bugs import bisect_search, repro, statistics
from testbed.bugs.bisect_search import BisectAnswer, BisectRange
from testbed.bugs.kernel_tries import KernelTries, KernelVerdict
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.reduce import MEASURED_TRIES, OnStep
from testbed.bugs.repro import ReproJob
from testbed.bugs.statistics import Rate
from testbed.errors import GuestError, TemplateError, UsageError
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import Series, short_name

# What is reported of a kernel whose tries have not ended.
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class BisectStep:
    """One kernel of a bisection: its answer (None while its tries run) and its tries. `why`: the reason why it was
    skipped."""

    kernel: str
    answer: BisectAnswer | None
    tried: KernelTries
    why: str = ""

    @property
    def said(self) -> str:
        return self.answer.value if self.answer is not None else UNFINISHED


class Bisector:
    """Tries a bug on kernels, often enough that the probability of a wrong `good` in the whole search is at most
    `error`."""

    def __init__(
        self, job: ReproJob, kernel_of: Callable[[str], Awaitable[KernelFiles]], error: float, on_step: OnStep
    ) -> None:
        self._job, self._kernel_of, self._error, self._on_step = job, kernel_of, error, on_step
        self.steps: list[BisectStep] = []
        self.rate: float | None = None
        self._trying: BisectStep | None = None

    @property
    def so_far(self) -> tuple[BisectStep, ...]:
        """The kernels that were tried so far, with the one whose tries still run."""
        return (*self.steps, *([self._trying] if self._trying is not None else []))

    async def bisect(self, kernels: tuple[str, ...], good: int, bad: int, rate: float | None) -> BisectRange:
        """Find the two neighbours in the list between which the bug came or went. `rate`: how often the bug shows on
        the bad side; None: measure it there.

        :raise HostError: this machine cannot run the guests.
        """
        self.rate = rate
        share = self._error / (1 + bisect_search.most_steps(good, bad))
        search = bisect_search.bisect(good, bad)
        number = next(search)
        try:
            while True:
                measure = number == bad and self.rate is None
                answer = await self.ask(kernels[number], share, measure=measure)
                number = search.send(answer)
        except StopIteration as end:
            found: BisectRange = end.value
            return found

    async def ask(self, spec: str, error: float, *, measure: bool = False) -> BisectAnswer:
        """Find out whether one kernel is bad; one that cannot be unpacked or does not boot is skipped. `measure`: run
        all tries, and take the lower bound of their interval as the rate.

        :raise HostError: this machine cannot run the guests.
        """
        kernel, why = _unusable(spec), ""

        def on_try(tried: KernelTries, one: Try) -> None:
            self._trying = BisectStep(kernel=spec, answer=None, tried=tried)
            self._job.on_try(tried, one)

        try:
            before = [one.tried.kernel for one in self.steps]
            kernel = repro.distinct_names((*before, await self._kernel_of(spec)))[-1]
            tries = MEASURED_TRIES if measure else statistics.tries_for(self.rate or self._stated_rate, error)
            limits = replace(self._job.limits, tries=tries, every=measure, until=None)
            tried = await repro.try_kernel(replace(self._job, limits=limits, on_try=on_try), kernel, must_show=True)
        except (UsageError, TemplateError, GuestError) as failure:
            tried, why = (
                KernelTries(kernel=kernel, must_show=True, tries=(), took_s=0.0, first_hit_s=None),
                str(failure),
            )
        answer = {
            KernelVerdict.SHOWS: BisectAnswer.BAD,
            KernelVerdict.ABSENT: BisectAnswer.GOOD,
            KernelVerdict.TROUBLE: BisectAnswer.SKIP,
        }[tried.verdict]
        if measure and answer is BisectAnswer.BAD:
            self.rate = tried.rate.low
        if answer is BisectAnswer.SKIP:
            why = why or next((one.why for one in tried.tries if one.outcome is Outcome.TROUBLE), "")
        self._trying = None
        self.steps.append(BisectStep(kernel=spec, answer=answer, tried=tried, why=why))
        self._on_step(f"{spec}: {answer.value}: {tried.words}{f'; {why}' if why else ''}")
        return answer

    @property
    def _stated_rate(self) -> float:
        """The rate in the bug file; without one, the lower bound for `MEASURED_TRIES` hits in as many tries."""
        bug = self._job.case.bug
        return bug.rate if "rate" in bug.model_fields_set else Rate(hits=MEASURED_TRIES, tries=MEASURED_TRIES).low


def _unusable(spec: str) -> KernelFiles:
    """Stands for a kernel whose files cannot be used: only its name is known."""
    name = short_name(spec)
    return KernelFiles(
        name=name,
        series=Series.UNKNOWN,
        release="",
        origin=spec,
        sha256=spec,
        folder=Path(),
        early_modules=(),
        has_modules=False,
    )
