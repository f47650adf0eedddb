"""Claims that a bug is absent: how often they are wrong, over all outcomes of tries, and how many tries they take."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.bugs import absence
from testbed.bugs.statistics import Rate

# Called again for each pair of rates.
enough, needed = functools.cache(absence.has_enough_tries), functools.cache(absence.fewest_misses)


def share_below(shown: float) -> float:
    """Return the greatest rate on the other kernel that counts as absent, for a bug that shows at the rate `shown`."""
    return shown / (shown + absence.MARGIN * (1 - shown))


def stopping_rates(shown: float, most: int) -> Iterator[tuple[Rate, float]]:
    """Yield the rates at which the tries of the kernel with the bug stop, and their chances."""
    going_on = {0: 1.0}
    for tries in range(1, most + 1):
        after: dict[int, float] = {}
        for hits, chance in going_on.items():
            for more, p in ((1, shown), (0, 1 - shown)):
                after[hits + more] = after.get(hits + more, 0.0) + chance * p
        going_on = {}
        for hits, chance in after.items():
            rate = Rate(hits=hits, tries=tries)
            if tries == most or enough(rate, most):
                yield rate, chance
            else:
                going_on[hits] = chance


def claim_chance(shown: float, clean: float, most: int) -> float:
    """Return the exact chance of "shows there and not here" for two rates, with at most `most` tries on each kernel."""
    total = 0.0
    for rate, chance in stopping_rates(shown, most):
        misses = needed(rate)
        if misses is not None and misses <= most:
            total += chance * (1 - clean) ** misses
    return total


@pytest.mark.parametrize("most", [6, 20, 60])
def test_rates_within_the_margin_are_called_clean_in_less_than_5_percent_of_all_runs(most: int) -> None:
    for shown in (0.05, 0.25, 0.5, 0.7, 0.8, 0.9, 0.99):
        assert claim_chance(shown, share_below(shown), most) < 0.05


@pytest.mark.parametrize("most", [20, 60, 100])
def test_a_bug_of_25_percent_on_one_kernel_and_5_on_the_other_is_not_clean(most: int) -> None:
    assert share_below(0.25) == pytest.approx(0.05)
    assert claim_chance(0.25, 0.05, most) < 0.05


def test_a_bug_that_is_gone_is_told_apart() -> None:
    assert claim_chance(1, 0, 6) == 1
    assert claim_chance(0.95, 0, 20) > 0.99 and claim_chance(0.8, 0, 20) > 0.8
    # After the file's 20 tries it is open whether a bug that shows in half of them is gone; after as many tries as the
    # message names, it seldom is.
    assert claim_chance(0.5, 0, 20) < 0.1 and claim_chance(0.5, 0, 2 * absence.tries_for_share(0.5)) > 0.8


def test_looking_after_each_try_on_either_kernel_is_no_way_around_it() -> None:
    """Tests the worst that a person can do: try both kernels in turn until the claim holds."""
    chance = random.Random(25)
    wrong = 0
    for _ in range(1000):
        hits = 0
        for tries in range(1, 200):
            hits += chance.random() < 0.5
            if chance.random() < share_below(0.5):
                break
            if absence.is_absent(Rate(hits=hits, tries=tries), tries):
                wrong += 1
                break
    assert wrong < 50


def test_how_many_tries_it_takes() -> None:
    # The numbers of docs/reproduce.md.
    always = [Rate(hits=tries, tries=tries) for tries in range(1, 9)]
    assert [absence.fewest_misses(rate) for rate in always] == [53, 16, 10, 8, 7, 6, 5, 5]
    assert [absence.is_absent(rate, rate.tries) for rate in always] == [False] * 5 + [True] * 3
    assert [absence.tries_for_share(share) for share in (1, 0.75, 0.5, 0.25, 0.05)] == [6, 19, 44, 160, 1400]
    assert (
        absence.fewest_misses(Rate(hits=0, tries=20)) is None and absence.fewest_misses(Rate(hits=1, tries=200)) is None
    )


def test_a_showing_kernel_goes_on_to_a_hit_and_stops_where_no_more_can_be_had() -> None:
    assert not absence.has_enough_tries(Rate(hits=0, tries=20), 40)
    assert not absence.has_enough_tries(Rate(hits=1, tries=1), 20)
    # 14 hits of 20 would be enough, and can no longer be reached.
    assert absence.has_enough_tries(Rate(hits=1, tries=8), 20) and not absence.has_enough_tries(
        Rate(hits=1, tries=7), 20
    )
    assert absence.has_enough_tries(Rate(hits=1, tries=1), 5)


@given(st.integers(1, 80), st.integers(0, 80), st.integers(0, 300))
def test_more_hits_and_more_misses_are_never_less_evidence(hits: int, other: int, misses: int) -> None:
    rate = Rate(hits=hits, tries=hits + other)
    evidence = absence.log_evidence(rate, misses)
    assert absence.log_evidence(rate, misses + 1) >= evidence - 1e-9
    # Against every pair of rates within the margin: none makes the tries more likely than the search has found.
    for p in (n / 50 for n in range(1, 50)):
        rarely = share_below(p)
        assert (
            absence._greatest(rate, misses) >= log_likelihood(hits, other, p) + log_likelihood(0, misses, rarely) - 1e-9
        )


def log_likelihood(hits: int, misses: int, p: float) -> float:
    return hits * math.log(p) + misses * math.log(1 - p)
