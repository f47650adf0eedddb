"""The rank tests: equal to scipy's, and with the error rate that they state."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.report import rank_test
from testbed.report.rank_test import Shift, adjust_p_values, least_p, p_value, shift
from tests import oracle

Sample = list[float]
SIZES = [(4, 4), (5, 5), (3, 9), (10, 7), (20, 20), (50, 50), (60, 50), (100, 30)]


def drawn(chance: random.Random, size: int, *, ties: bool, by: float = 0.0) -> Sample:
    return [by + (float(chance.randrange(4)) if ties else chance.gauss(0, 1)) for _ in range(size)]


@pytest.fixture(scope="module")
def scipy_stats() -> Any:
    return oracle.stats()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("by", [0.0, 1.0])
def test_p_values_without_ties_equal_scipys(scipy_stats: Any, sizes: tuple[int, int], by: float) -> None:
    chance = random.Random(1)
    for _ in range(5):
        first, second = drawn(chance, sizes[0], ties=False), drawn(chance, sizes[1], ties=False, by=by)
        method = "exact" if sum(sizes) <= rank_test.EXACT else "asymptotic"
        assert p_value(first, second) == pytest.approx(scipy_stats.mannwhitneyu(first, second, method=method).pvalue)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 5), (3, 7), (6, 6)])
def test_p_values_with_ties_equal_scipys_permutation_test(scipy_stats: Any, sizes: tuple[int, int]) -> None:
    chance = random.Random(2)
    for by in (0.0, 1.0, 2.0):
        first, second = drawn(chance, sizes[0], ties=True), drawn(chance, sizes[1], ties=True, by=by)
        ranks = scipy_stats.rankdata([*first, *second])
        expected = scipy_stats.permutation_test(
            (ranks[: sizes[0]], ranks[sizes[0] :]), lambda one, _: one.sum(), n_resamples=math.inf, vectorized=False
        )
        assert p_value(first, second) == pytest.approx(expected.pvalue)


def test_p_values_of_large_samples_with_ties_equal_scipys_normal_approximation(scipy_stats: Any) -> None:
    chance = random.Random(3)
    for by in (0.0, 1.0):
        first, second = drawn(chance, 80, ties=True), drawn(chance, 70, ties=True, by=by)
        assert p_value(first, second) == pytest.approx(
            scipy_stats.mannwhitneyu(first, second, method="asymptotic").pvalue
        )
    assert p_value([1.0] * 80, [1.0] * 80) == 1.0


def test_the_interval_has_the_shifts_that_scipys_test_does_not_reject(scipy_stats: Any) -> None:
    chance = random.Random(4)
    for sizes in ((4, 4), (5, 6), (10, 10), (12, 20)):
        first, second = drawn(chance, sizes[0], ties=False), drawn(chance, sizes[1], ties=False, by=1.0)
        found = shift(first, second)
        assert found.estimate == statistics.median(b - a for a in first for b in second)
        for end, outward in ((found.low, -1e-9), (found.high, 1e-9)):
            for by, refused in ((end + outward, True), (end - outward, False)):
                moved = [value - by for value in second]
                assert bool(scipy_stats.mannwhitneyu(first, moved, method="exact").pvalue <= 0.05) is refused


def test_adjusted_p_values_equal_scipys(scipy_stats: Any) -> None:
    chance = random.Random(5)
    for size in (1, 2, 30):
        found = [chance.random() ** 3 for _ in range(size)]
        assert adjust_p_values(found) == pytest.approx(list(scipy_stats.false_discovery_control(found, method="bh")))
    assert adjust_p_values([]) == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_the_exact_test_counts_all_choices_of_the_first_sample(first: list[int], second: list[int]) -> None:
    every = [*first, *second]

    def rank_sum(chosen: tuple[int, ...]) -> float:
        return sum(sum(one < every[at] for one in every) + (every.count(every[at]) + 1) / 2 for at in chosen)

    seen = rank_sum(tuple(range(len(first))))
    sums = [rank_sum(chosen) for chosen in itertools.combinations(range(len(every)), len(first))]
    tails = (sum(one <= seen for one in sums), sum(one >= seen for one in sums))
    assert p_value(first, second) == pytest.approx(min(1.0, 2 * min(tails) / len(sums)))
    assert p_value(second, first) == pytest.approx(p_value(first, second))


def test_least_p_is_the_p_value_of_fully_separated_samples() -> None:
    for size in (4, 5, 10):
        assert p_value(range(size), range(100, 100 + size)) == pytest.approx(least_p(size, size))
    assert least_p(3, 3) == pytest.approx(0.1) and least_p(4, 4) < 0.03
    assert shift([1, 2, 3, 4], [11, 12, 13, 14]) == Shift(estimate=10, low=7, high=13)


@pytest.mark.parametrize(("first", "second"), [([], [1.0]), ([1.0], [math.nan]), ([math.inf], [1.0])])
def test_empty_samples_and_infinite_values_are_refused(first: Sample, second: Sample) -> None:
    with pytest.raises(ValueError, match="expected two samples of finite numbers"):
        p_value(first, second)


def test_three_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="expected 4 values or more in each sample, got 3 and 9"):
        shift([1, 2, 3], [1.0] * 9)


# Kinds of noise: uniform, skewed with outliers as durations are, and counts with many ties.
NOISE: dict[str, Callable[[random.Random], float]] = {
    "normal": lambda chance: chance.gauss(1, 0.08),
    "skewed": lambda chance: chance.lognormvariate(0, 0.3),
    "counts": lambda chance: float(chance.choice((3, 3, 3, 4, 4, 25))),
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("size", [4, 5, 10])
def test_the_interval_contains_the_true_shift(noise: str, size: int) -> None:
    chance, draw = random.Random(size), NOISE[noise]
    held = 0
    for _ in range(600):
        found = shift([draw(chance) for _ in range(size)], [1.0 + draw(chance) for _ in range(size)])
        held += found.low <= 1.0 + 1e-9 and found.high >= 1.0 - 1e-9
    # 95 % are 570; 548 are four standard deviations less.
    assert held >= 548
