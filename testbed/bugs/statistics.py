"""Statistics of hits among tries: rates with intervals, stopping rules, and how many tries a claim needs. Pure.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927); A. Wald,
"Sequential tests of statistical hypotheses" (1945); C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial
limits" (1934).
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# The standard normal distribution's two-sided quantile at 95 %.
_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Hits among tries, with Wilson's interval at 95 %, which is 0 to 1 without any try."""

    hits: int
    tries: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.tries:
            raise ValueError(f"expected 0 to {self.tries} hits, got {self.hits}")

    @property
    def share(self) -> float:
        return self.hits / self.tries if self.tries else 0.0

    @property
    def low(self) -> float:
        return self._bounds()[0]

    @property
    def high(self) -> float:
        return self._bounds()[1]

    def _bounds(self) -> tuple[float, float]:
        if not self.tries:
            return 0.0, 1.0
        n, p, z2 = self.tries, self.share, _Z_95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # With no hits or only hits the bound is exactly 0 or 1, which rounding must not miss.
        return 0.0 if self.hits == 0 else max(0.0, middle - half), 1.0 if self.hits == n else min(1.0, middle + half)

    def __str__(self) -> str:
        if not self.tries:
            return "no tries"
        return f"{self.hits} of {self.tries} ({self.share:.0%}, 95 % interval {self.low:.0%} to {self.high:.0%})"


def exact_interval(least: int, most: int, tries: int) -> tuple[float, float]:
    """Return Clopper's and Pearson's interval at 95 % of tries of which it is only known that `least` to `most` were
    hits.

    It also holds for tries that were stopped at a hit: the fewer there are, the wider it is.
    """
    if not 0 <= least <= most <= tries or not tries:
        raise ValueError(f"expected 0 <= least <= most <= tries, and some tries, got {least}, {most}, {tries}")
    low = 0.0 if least == 0 else _rate_where(lambda p: 1 - _at_most(least - 1, tries, p) >= _TAIL)
    return low, 1.0 if most == tries else _rate_where(lambda p: _at_most(most, tries, p) <= _TAIL)


_TAIL = 0.025


def _at_most(hits: int, tries: int, p: float) -> float:
    """Return the binomial probability of at most this many hits; `p` is above 0 and below 1.

    Computed with logarithms, because binomial coefficients exceed a float from 1030 tries on.
    """
    hit, miss, ways = math.log(p), math.log1p(-p), math.lgamma(tries + 1)
    terms = (
        ways - math.lgamma(k + 1) - math.lgamma(tries - k + 1) + k * hit + (tries - k) * miss for k in range(hits + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))


def _rate_where(holds: Callable[[float], bool]) -> float:
    """Return the least rate at which a condition holds that also holds at all greater rates."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class NextTry(enum.Enum):
    """The answer of a stopping rule."""

    GO_ON = "go on"
    REACHED = "reached"
    OUT_OF_REACH = "out of reach"


def until_rate(wanted: float, rate: Rate, most_tries: int) -> NextTry:
    """Whether the interval's lower bound has reached `wanted`, or cannot any more within `most_tries` even if all that
    are left hit."""
    if rate.tries and rate.low >= wanted:
        return NextTry.REACHED
    left = most_tries - rate.tries
    best = Rate(hits=rate.hits + left, tries=most_tries)
    return NextTry.GO_ON if left > 0 and best.low >= wanted else NextTry.OUT_OF_REACH


def tries_until(wanted: float) -> int:
    """Return the fewest tries, all of them hits, whose lower bound is at least `wanted` (below 1)."""
    # With hits alone the lower bound is n / (n + z²).
    return max(1, math.ceil(wanted * _Z_95**2 / (1 - wanted)))


def tries_for(rate: float, error: float) -> int:
    """Return how many tries are needed so that all of them miss a bug of this `rate` with a probability of at most
    `error`."""
    if rate >= 1:
        return 1
    return max(1, math.ceil(math.log(error) / math.log(1 - rate) - 1e-9))


def median(values: Sequence[float]) -> float | None:
    """Return the median, or None for an empty sequence."""
    return statistics.median(values) if values else None


@dataclass(slots=True, kw_only=True)
class Sequential:
    """Wald's sequential test: is a rate as high as `kept`, or as low as `lost`? Each wrong answer has a probability of
    about `error`."""

    kept: float
    lost: float
    error: float
    hits: int = 0
    misses: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.lost < self.kept < 1 or not 0 < self.error < 0.5:
            raise ValueError(
                f"expected 0 < lost < kept < 1 and an error below 0.5, got {self.lost}, {self.kept}, {self.error}"
            )

    def add(self, hit: bool) -> None:
        if hit:
            self.hits += 1
        else:
            self.misses += 1

    @property
    def verdict(self) -> bool | None:
        """True: kept. False: lost. None: more tries are needed."""
        likelihood = self.hits * math.log(self.kept / self.lost) + self.misses * math.log(
            (1 - self.kept) / (1 - self.lost)
        )
        bound = math.log((1 - self.error) / self.error)
        return True if likelihood >= bound else False if likelihood <= -bound else None


def sequential(rate: Rate, error: float) -> Sequential:
    """Return the test whether a measured rate is kept: at least nine tenths of it, or at most half of that."""
    kept = max(0.02, 0.9 * rate.share)
    return Sequential(kept=kept, lost=kept / 2, error=error)
