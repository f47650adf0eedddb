"""The tries of a bug on one kernel, and what they say together: its rate, and whether the bug shows there. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from testbed.bugs import statistics
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.statistics import Rate
from testbed.store.kernels.kernel_files import KernelFiles


class KernelVerdict(enum.Enum):
    """Of one kernel: the bug SHOWS, was ABSENT in all tries, or nothing is known (TROUBLE)."""

    SHOWS = "shows"
    ABSENT = "absent"
    TROUBLE = "trouble"


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
