"""Tests by ranks, for noise of any distribution, whether two samples differ, by how much, and which of many differences
are beyond chance. Pure.

Sources: H. B. Mann and D. R. Whitney, "On a test of whether one of two random variables is stochastically larger than
the other" (1947); J. L. Hodges and E. L. Lehmann, "Estimates of location based on rank tests" (1963); M. Hollander, D.
A. Wolfe, E. Chicken, "Nonparametric Statistical Methods" (2014), 4.1 to 4.3; Y. Benjamini and Y. Hochberg, "Controlling
the false discovery rate" (1995).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# With fewer values in either sample an interval at 95 % has no ends: 3 against 3 values are completely ordered by
# chance in 10 % of all cases.
LEAST = 4
# Up to so many values in both samples together the test is exact, which takes 0.1 s for 50 against 50; above it uses
# the normal distribution.
EXACT = 100
_TAIL = 0.025
_NORMAL = statistics.NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How much greater the second sample's values are: the estimate of Hodges and Lehmann, and its interval at 95 %."""

    estimate: float
    low: float
    high: float


def p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of the test of Mann and Whitney: the probability of ranks at least as uneven, if all
    values came from one distribution.

    Exact over all ways to choose the first sample, with equal values; above `EXACT` values by the normal distribution,
    with corrections for equal values and for continuity.
    """
    _check(first, second)
    ranks = _twice_ranks((*first, *second))
    total = sum(ranks[: len(first)])
    if len(ranks) > EXACT:
        return _by_normal(len(first), len(second), total, ranks)
    counts = _counts(tuple(sorted(ranks)), len(first))
    below = sum(counts[: total + 1])
    above = sum(counts[total:])
    return min(1.0, 2 * min(below, above) / math.comb(len(ranks), len(first)))


def shift(first: Sequence[float], second: Sequence[float]) -> Shift:
    """Return the median of all differences between the samples, and the range of shifts that the test does not reject
    at 5 %.

    :raise ValueError: one has fewer than `LEAST` values.
    """
    _check(first, second)
    if min(len(first), len(second)) < LEAST:
        raise ValueError(f"expected {LEAST} values or more in each sample, got {len(first)} and {len(second)}")
    differences = sorted(after - before for before in first for after in second)
    beyond = _refused(len(first), len(second))
    return Shift(estimate=statistics.median(differences), low=differences[beyond], high=differences[-1 - beyond])


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by the method of Benjamini and Hochberg: of those that are at most 0.05 then, 5 % are expected to
    be chance; without any difference, 5 % of all sets have such a p-value."""
    count = len(p_values)
    order = sorted(range(count), key=lambda number: p_values[number], reverse=True)
    adjusted, least = [0.0] * count, 1.0
    for place, number in enumerate(order):
        least = min(least, p_values[number] * count / (count - place))
        adjusted[number] = least
    return adjusted


def least_p(first: int, second: int) -> float:
    """Return the least p-value of samples of these sizes: if all values of one are below all values of the other."""
    return 2 / math.comb(first + second, first)


def _check(first: Sequence[float], second: Sequence[float]) -> None:
    if not first or not second or not all(map(math.isfinite, (*first, *second))):
        raise ValueError(f"expected two samples of finite numbers, got {list(first)} and {list(second)}")


def _twice_ranks(values: Sequence[float]) -> list[int]:
    """Return each value's rank, doubled; equal values share the mean of their ranks."""
    order = sorted(values)
    first: dict[float, int] = {}
    for place, value in enumerate(order):
        first.setdefault(value, place)
    many = Counter(order)
    return [2 * first[value] + many[value] + 1 for value in values]


@functools.lru_cache(maxsize=64)
def _counts(ranks: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return how many choices of `size` ranks have each sum, from 0 on.

    Each polynomial is one large integer: the coefficient of x^sum is its digit at `sum`, wide enough for the greatest
    count.
    """
    width = math.comb(len(ranks), size).bit_length() // 8 + 1
    chosen = [1] + [0] * size
    for rank in ranks:
        for many in range(size, 0, -1):
            chosen[many] += chosen[many - 1] << (8 * width * rank)
    digits = chosen[size].to_bytes((sum(ranks) + 1) * width, "little")
    return tuple(int.from_bytes(digits[at : at + width], "little") for at in range(0, len(digits), width))


def _refused(first: int, second: int) -> int:
    """Return how many of the differences at either end are outside of the interval at 95 %."""
    if first + second > EXACT:
        middle, deviation = first * second / 2, math.sqrt(first * second * (first + second + 1) / 12)
        return math.floor(middle - _NORMAL.inv_cdf(1 - _TAIL) * deviation)
    counts = _counts(tuple(range(2, 2 * (first + second) + 1, 2)), first)
    # Counts of U, the sum of the ranks minus its minimum: every second count, because ranks are doubled here.
    of_u = counts[first * (first + 1) :: 2]
    most, so_far = _TAIL * math.comb(first + second, first), 0
    for beyond, count in enumerate(of_u):
        so_far += count
        if so_far > most:
            return beyond - 1
    raise AssertionError("the counts are all ways there are")


def _by_normal(first: int, second: int, twice_sum: int, ranks: Sequence[int]) -> float:
    every = first + second
    ties = sum(many**3 - many for many in Counter(ranks).values()) / (every * (every - 1))
    variance = first * second / 12 * (every + 1 - ties)
    if variance <= 0:
        return 1.0
    off = abs(twice_sum / 2 - first * (every + 1) / 2) - 0.5
    return min(1.0, 2 * (1 - _NORMAL.cdf(off / math.sqrt(variance))))
