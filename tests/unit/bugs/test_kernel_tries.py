"""Tries on one kernel, and the names and sides of kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.bugs import repro
from testbed.errors import UsageError
from tests.support.bug_runs import HIT, kernel, tried


def test_kernels_of_one_file_name_are_told_apart_and_names_are_plain() -> None:
    first, same, other = kernel("bzImage", "aa" * 8), kernel("bzImage", "aa" * 8), kernel("bzImage", "bb" * 8)
    assert [one.name for one in repro.distinct_names((first, same, other))] == [
        "bzImage",
        "bzImage",
        "bzImage-bbbbbbbb",
    ]
    deb = kernel("../linux-image_6.1~rc1+deb12u1 amd64.deb", "cc" * 8)
    assert repro.distinct_names((deb,))[0].name == "linux-image_6.1-rc1-deb12u1-amd64.deb"


def test_one_kernel_is_not_on_both_sides_whatever_its_file_is_called() -> None:
    first, same, other = kernel("a", "aa"), kernel("b", "aa"), kernel("c", "cc")
    assert [[one.name for one in side] for side in repro.kernel_sides((first, same), (other,))] == [["b"], ["c"]]
    with pytest.raises(UsageError, match="kernels a and b: expected it to show on one of them only"):
        repro.kernel_sides((first,), (same,))


def test_tries_that_stopped_at_a_hit_say_less_and_those_cut_short_less_still() -> None:
    whole = tried("k", HIT)
    assert [round(bound, 3) for bound in whole.interval] == [0.207, 1.0]
    stopped = replace(whole, stopped=True)
    assert [round(bound, 3) for bound in stopped.interval] == [0.025, 1.0]
    assert stopped.words == "1 of 1, stopped at a hit (95 % interval 3% to 100%)"
    # Of four tries at least one is a hit; the other three were cut short, and may have been hits as well.
    low, high = replace(stopped, cut=3).interval
    assert (round(low, 4), high) == (0.0063, 1.0)
