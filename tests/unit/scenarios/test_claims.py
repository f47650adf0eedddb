"""What the scenarios conclude from their numbers."""

import math
from functools import partial

import pytest

from testbed.scenarios.claims import (
    io_cost,
    io_limits,
    many_cgroups,
    memory_limit,
    nested_charging,
    read,
    swap_in,
)
from testbed.scenarios.harness import loops_at
from testbed.scenarios.scenario import Point
from testbed.scenarios.verdict import Balance, Gap, Part
from testbed.units import MIB

G = Gap


OWN = [many_cgroups._asked(number) for number in range(8)]


@pytest.mark.parametrize(
    ("accounted", "real", "finding"),
    [(100, 100, False), (0, 0, False), (990, 1000, False), (989, 1000, True), (5, 0, True)],
)
def test_a_difference_above_one_percent_is_a_finding(accounted: int, real: int, finding: bool) -> None:
    assert Balance(what="x", accounted=accounted, real=real).is_finding is finding


def test_controls_of_a_limit_state_what_they_expect() -> None:
    limited, free = io_limits.limit_control("a loop", 1.25 * MIB, MIB), io_limits.free_control(2.5 * MIB, MIB)
    assert (limited.expected, limited.got, limited.holds) == (
        "0.6 to 1.3 times the limit of 1.0 MiB/s",
        "1.25 MiB/s",
        True,
    )
    assert (free.expected, free.got, free.holds) == ("at least twice the limit", "2.50 MiB/s", True)
    assert (
        not io_limits.limit_control("a loop", 1.5 * MIB, MIB).holds and not io_limits.free_control(1.5 * MIB, MIB).holds
    )


def test_budget_saved_while_idle_does_not_count_as_a_rate() -> None:
    assert io_cost._kept({"loop0-alone": 180.0, "loop0-beside": 90.0}, "loop0") == 0.9
    assert io_cost._kept({"loop0-alone": 80.0, "loop0-beside": 40.0}, "loop0") == 0.5
    assert math.isnan(io_cost._kept({"loop0-alone": 0.0, "loop0-beside": 0.0}, "loop0"))


def test_every_cgroup_reads_a_number_of_bytes_that_its_neighbours_do_not() -> None:
    assert [size - MIB for size in OWN] == [0, 64 << 10, 128 << 10, 192 << 10] * 2


def test_a_read_asks_for_what_its_judge_expects() -> None:
    assert read.read_command("/dev/loop0") == "dd if=/dev/loop0 of=/dev/null bs=1M count=16 iflag=direct status=none"


@pytest.mark.parametrize(
    ("reclaimed", "written", "gap"),
    [
        (50 * MIB, 64 * MIB, G.CLOSED),
        (0, 64 * MIB, G.OPEN),
        (20 * MIB, 64 * MIB, G.UNCLEAR),
        (10 * MIB, 20 * MIB, G.UNCLEAR),
    ],
)
def test_what_is_written_beyond_the_limit_must_be_reclaimed(reclaimed: int, written: int, gap: Gap) -> None:
    assert memory_limit.judge(reclaimed=reclaimed, written=written, limit=16 * MIB, kills=0) is gap


def test_a_killed_writer_counts_only_if_its_limit_was_too_small() -> None:
    assert memory_limit.judge(reclaimed=0, written=7 * MIB, limit=8 * MIB, kills=1) is Gap.CLOSED
    for size in (16 * MIB, 32 * MIB):
        assert memory_limit.judge(reclaimed=0, written=7 * MIB, limit=size, kills=1) is Gap.UNCLEAR


def test_each_cgroup_must_be_charged_its_own_bytes() -> None:
    total, ahead = sum(OWN), [int(size * 1.25) for size in OWN]
    assert many_cgroups.judge(OWN, total).gap is G.CLOSED and many_cgroups.judge(ahead, sum(ahead)).gap is G.CLOSED
    assert many_cgroups.judge([0] * 8, total).gap is G.OPEN
    # The same bytes are an excess if the disk moved no more than was requested: then there was no readahead.
    assert many_cgroups.judge(ahead, total).gap is G.EXCESS
    assert many_cgroups.judge([2 * size for size in OWN], total).note.startswith(
        "; charged more than there was: cgroup 0 2.0 times, cgroup 1 2.0"
    )
    one = many_cgroups.judge([total, *[0] * 7], total)
    assert one.gap is G.EXCESS and one.note == f"; charged more than there was: cgroup 0 {total / OWN[0]:.1f} times"
    half = many_cgroups.judge([*OWN[:-1], 0], total - OWN[-1])
    assert half.gap is G.UNCLEAR and half.note == "; too little came from the disk"
    without = many_cgroups.judge([OWN[0], 0], OWN[0] + OWN[1])
    assert without.gap is G.UNCLEAR, "all cgroups have 48 % of what the disk moved"


def test_each_loop_of_a_stack_has_space_for_the_next() -> None:
    made = loops_at(Point(disk="nvme", filesystem="ext4", depth=3, size_bytes=64 * MIB), "fast").loops
    assert [(name, loop.backing, (loop.size or 0) // MIB) for name, loop in made.items()] == [
        ("loop0", "fast/file", 256),
        ("loop1", "loop0/file", 128),
        ("loop2", "loop1/file", 64),
    ]
    assert loops_at(Point(), "").loops["loop0"].filesystem == "tmpfs"


PUNCHED = partial(
    nested_charging.judge_punched, pages=2 * MIB, moved=2 * MIB, slab=40_000, later=Part(what="x", gap=G.CLOSED)
)


def test_punched_blocks_are_judged_in_parts() -> None:
    assert PUNCHED().gap is G.CLOSED
    assert PUNCHED(pages=0, slab=0, later=Part(what="x", gap=G.OPEN)).gap is G.OPEN
    lost = PUNCHED(later=Part(what="x", gap=G.OPEN))
    assert lost.gap is G.PARTIAL
    assert (
        lost.note
        == "; charged: the pages of punched blocks, their buffer heads; not charged: the disk's bytes read later"
    )
    assert PUNCHED(pages=4 * MIB).note == "; charged more than there was: the pages of punched blocks 2.0 times"
    assert PUNCHED(pages=4 * MIB, moved=4 * MIB).gap is G.CLOSED, "what the disk moved was read ahead"
    assert PUNCHED(moved=MIB).gap is G.UNCLEAR and PUNCHED(slab=20_000).gap is G.UNCLEAR


def test_pages_in_memory_and_in_swap_at_once_are_inconclusive() -> None:
    written = 96 << 20
    for left, swapped in ((written, written), (0, 1 << 63)):
        seen = {"written": (written, 0), "squeezed": (left, swapped), "reader": (written, 0)}
        assert swap_in.judge(seen).gap is G.UNCLEAR
