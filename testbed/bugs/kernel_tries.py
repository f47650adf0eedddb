"""The tries of a bug on one kernel, and what they say together: its rate, and whether the bug shows there. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from testbed.bugs import statistics
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.statistics import Rate
from testbed.store.kernels.kernel_files import KernelFiles


class KernelVerdict(enum.Enum):
    """Whether the bug SHOWS on a kernel, was ABSENT in all tries, or neither can be told (TROUBLE)."""

    SHOWS = "shows"
    ABSENT = "absent"
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTries:
    """The tries of a bug on one kernel. `first_hit_s`: time of this machine from the start of the first try to the
    first hit.

    `stopped`: the tries ended at a hit, which decided their number. `cut`: tries that were running then, whose outcome
    is unknown. `ended`: no more tries were due.
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
        """The rate of hits among hits and misses."""
        outcomes = [one.outcome for one in self.tries]
        hits = outcomes.count(Outcome.HIT)
        return Rate(hits=hits, tries=hits + outcomes.count(Outcome.MISS))

    @property
    def interval(self) -> tuple[float, float]:
        """The rate's interval at 95 %. It is wider for tries that were stopped at a hit, where quick tries are ahead of
        slow ones: each try that was cut short may have been a hit or a miss."""
        rate = self.rate
        if not self.stopped:
            return rate.low, rate.high
        return statistics.exact_interval(rate.hits, rate.hits + self.cut, rate.tries + self.cut)

    @property
    def words(self) -> str:
        """The rate in words."""
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
        """The number of the first try with a hit."""
        return next((one.number for one in self.tries if one.outcome is Outcome.HIT), None)

    @property
    def median_hit_s(self) -> float | None:
        """The median time from a script's start to its hit."""
        return statistics.median(
            [one.hit_after_s for one in self.tries if one.outcome is Outcome.HIT and one.hit_after_s is not None]
        )

    @property
    def verdict(self) -> KernelVerdict:
        if self.rate.hits:
            return KernelVerdict.SHOWS
        return KernelVerdict.TROUBLE if self.troubles or not self.tries or not self.ended else KernelVerdict.ABSENT
