"""What the scenarios make of their numbers: thresholds and parsers, on text as guests printed it."""

import math
from collections.abc import Callable
from functools import partial

import pytest

from testbed.errors import ReadingError
from testbed.scenarios import rate_measurement
from testbed.scenarios.claims import (
    bfq_weight,
    deferred_destroy,
    io_cost,
    io_latency,
    io_limits,
    many_cgroups,
    memory_limit,
    nested_charging,
    read,
    swap_in,
    tmpfs_oom,
    workers,
)
from testbed.scenarios.harness import loops_at
from testbed.scenarios.scenario import Point
from testbed.scenarios.verdict import Balance, Gap, Part
from testbed.units import MIB

G = Gap


@pytest.mark.parametrize(
    ("accounted", "real", "finding"),
    [(100, 100, False), (0, 0, False), (990, 1000, False), (989, 1000, True), (5, 0, True)],
)
def test_a_difference_above_one_percent_is_a_finding(accounted: int, real: int, finding: bool) -> None:
    assert Balance(what="x", accounted=accounted, real=real).is_finding is finding


ALIVE = """\
stage written 100663296 0
stage squeezed 6299648 94363648
stage back 100663296 253952
stage reader 0 0
stage direct 33554432 0
"""
REMOVED = (
    "stage written 100663296 0\nstage squeezed 5128192 95535104\nstage reader 86327296 0\nstage direct 33554432 0\n"
)
BEFORE = "stage written 0 0\nstage squeezed 0 0\nstage back 0 0\nstage reader 0 0\nstage direct 33554432 0\n"


def test_rates_are_read_by_name() -> None:
    said = "rate loop 4 100.000000 104.000000\nstalled 12\nrate dio 2 1.5 2.5\n"
    assert rate_measurement.parse_rates(said, ("loop", "dio"), "g0") == {"loop": MIB, "dio": 2 * MIB}
    assert rate_measurement.parse_iops("iops a-alone 107.6\niops a-beside 1.3\n", ("a-alone",), "g0") == {
        "a-alone": 107.6,
        "a-beside": 1.3,
    }
    assert rate_measurement.parse_stalls("stalled 0\nstalled 5\nstalled 5\nstalled 9\n", "g0") == (5, 0, 4)


@pytest.mark.parametrize(
    "read",
    [
        lambda: rate_measurement.parse_rates("rate loop 4 100.0 104.0\n", ("loop", "dio"), "g0"),
        lambda: rate_measurement.parse_rates("rate loop 4 100.0 100.0\n", ("loop",), "g0"),
        lambda: rate_measurement.parse_rates("rate loop 4 104.0 100.0\n", ("loop",), "g0"),
        lambda: rate_measurement.parse_rates("rate loop 4 x y\n", ("loop",), "g0"),
        lambda: rate_measurement.parse_rates("rate loop 4 1.0 2.0\nrate loop 4 1.0 3.0\n", ("loop",), "g0"),
        lambda: rate_measurement.parse_iops("iops a \n", ("a",), "g0"),
        lambda: rate_measurement.parse_iops("iops a 1.2.3\n", ("a",), "g0"),
        lambda: rate_measurement.parse_iops(f"iops a {'9' * 5000}\n", ("a",), "g0"),
        lambda: rate_measurement.parse_stalls("stalled 0\nstalled 5\nstalled 5\n", "g0"),
        lambda: rate_measurement.parse_stalls("stalled 0\nstalled 5\nstalled 4\nstalled 9\n", "g0"),
        lambda: swap_in.parse_stages(BEFORE.replace("stage reader", "reader"), "alive", "g0"),
        lambda: swap_in.parse_stages(BEFORE.replace("stage reader 0 0", "stage reader 0"), "alive", "g0"),
        lambda: deferred_destroy.parse_dying("", "g0"),
        lambda: deferred_destroy.parse_dying("dying 4 -1\n", "g0"),
        lambda: tmpfs_oom.parse_oom_kills("oom_kill 0\noom_kill 1\n", 3, "g0"),
        lambda: tmpfs_oom.parse_oom_kills("oom_kill 0\noom_kill 1\noom_kill 0\n", 3, "g0"),
        lambda: tmpfs_oom.parse_oom_kills("oom_kill 0\noom_kill \u00b2\noom_kill 3\n", 3, "g0"),
    ],
)
def test_what_a_script_did_not_print_as_it_must_is_an_error(read: Callable[[], object]) -> None:
    with pytest.raises(ReadingError, match=r"^g0.*: expected .*, got "):
        read()


STALLED = partial(io_limits.judge_stall, file_s=1.0)
HELD = partial(io_latency.judge_held, free=38.0)


def weighed(ratio: float) -> Gap:
    return bfq_weight.judge_weight(ratio * 64, 64.0)


@pytest.mark.parametrize(
    ("judge", "value", "gap"),
    [
        (io_limits.judge_limit, 0.95, G.CLOSED),
        (io_limits.judge_limit, 0.5, G.UNCLEAR),  # held twice, or a machine that stood still
        (io_limits.judge_limit, math.inf, G.UNCLEAR),
        (io_limits.judge_limit, math.nan, G.UNCLEAR),
        (io_limits.judge_limit, 1.3, G.CLOSED),
        (io_limits.judge_limit, 1.6, G.UNCLEAR),
        (io_limits.judge_limit, 4.1, G.OPEN),
        (STALLED, 0.7, G.CLOSED),
        (STALLED, 0.4, G.UNCLEAR),
        (STALLED, 0.05, G.OPEN),
        (STALLED, 1.9, G.UNCLEAR),  # the limit makes a second of a MiB
        (STALLED, -0.1, G.UNCLEAR),
        (lambda file_s: io_limits.judge_stall(0.0, file_s), 0.0, G.UNCLEAR),
        (io_cost.judge_kept, 1.0, G.CLOSED),
        (io_cost.judge_kept, 0.5, G.UNCLEAR),
        (io_cost.judge_kept, 0.012, G.OPEN),
        (io_cost.judge_kept, 100.0, G.UNCLEAR),
        (io_cost.judge_kept, math.inf, G.UNCLEAR),
        (io_cost.judge_kept, math.nan, G.UNCLEAR),
        (weighed, 5.8, G.CLOSED),
        (weighed, 2.0, G.UNCLEAR),
        (weighed, 1.1, G.OPEN),
        (lambda heavy: bfq_weight.judge_weight(heavy, 0.0), 0.0, G.UNCLEAR),  # nothing ran
        (lambda heavy: bfq_weight.judge_weight(heavy, 0.0), 80.0, G.CLOSED),  # fio shows whole requests
        (lambda heavy: bfq_weight.judge_weight(heavy, 1.0), 1e6, G.UNCLEAR),  # more than the weights make
        (lambda heavy: bfq_weight.judge_weight(heavy, 1.0), math.inf, G.UNCLEAR),
        (lambda heavy: bfq_weight.judge_weight(heavy, -1.0), 80.0, G.UNCLEAR),
        (HELD, 9.0, G.CLOSED),
        (HELD, 38.0, G.OPEN),
        (HELD, 25.0, G.UNCLEAR),
        (HELD, 200.0, G.UNCLEAR),
        (lambda free: io_latency.judge_held(0.0, free), 0.1, G.UNCLEAR),
        (deferred_destroy.judge, 62.0, G.CLOSED),
        (deferred_destroy.judge, 5.0, G.OPEN),
        (deferred_destroy.judge, 20.0, G.UNCLEAR),
        (deferred_destroy.judge, None, G.UNCLEAR),
    ],
)
def test_thresholds(judge: object, value: float | None, gap: Gap) -> None:
    assert callable(judge) and judge(value) is gap


OWN = [many_cgroups._asked(number) for number in range(8)]
LIMITED = partial(memory_limit.judge, limit=16 * MIB, kills=0)
STAGES = {"written": (96 * MIB, 0), "squeezed": (0, 90 * MIB), "back": (96 * MIB, 0), "reader": (0, 0)}
REMOVED_STAGES = {"written": (96 * MIB, 0), "squeezed": (0, 80 * MIB), "reader": (64 * MIB, 0)}


def _many(share: float) -> Gap:
    """Where the last cgroup has this share of its own bytes, and the others have all, or none if it has almost none."""
    own = [*(OWN[:-1] if share > 0.5 else [0] * 7), share * OWN[-1]]
    return many_cgroups.judge(own, sum(OWN)).gap  # type: ignore[arg-type]  # a share of bytes


def _swap(stage: str, of: dict[str, tuple[int, int]] = STAGES, *, swapped: bool = False) -> Callable[[float], Gap]:
    return lambda size: swap_in.judge({**of, stage: (0, size) if swapped else (size, 0)}).gap  # type: ignore[dict-item]  # a share of bytes


def _read(moved: float) -> Gap:
    """Of a reader that was charged 5 % more than 16M."""
    charged = 16 * MIB * 1.05
    return read.judge(charged=charged, moved=moved, owned=16 * MIB, resident=16 * MIB).gap  # type: ignore[arg-type]  # a share of bytes


# A judge, the last value for which it says one thing, and what it says of it and of the next one in this direction.
@pytest.mark.parametrize(
    ("judge", "value", "towards", "here", "there"),
    [
        (io_limits.judge_limit, 1.3, 9, G.CLOSED, G.UNCLEAR),
        (io_limits.judge_limit, 0.6, 0, G.CLOSED, G.UNCLEAR),
        (io_limits.judge_limit, 2, 0, G.OPEN, G.UNCLEAR),
        (STALLED, 0.5, 0, G.CLOSED, G.UNCLEAR),
        (STALLED, 0.1, 1, G.OPEN, G.UNCLEAR),
        (STALLED, 1.5, 9, G.CLOSED, G.UNCLEAR),
        (io_cost.judge_kept, 0.7, 0, G.CLOSED, G.UNCLEAR),
        (io_cost.judge_kept, 0.2, 1, G.OPEN, G.UNCLEAR),
        (io_cost.judge_kept, 3, 9, G.CLOSED, G.UNCLEAR),
        (weighed, 2.5, 0, G.CLOSED, G.UNCLEAR),
        (weighed, 1.5, 9, G.OPEN, G.UNCLEAR),
        (deferred_destroy.judge, 10, 99, G.OPEN, G.UNCLEAR),
        (deferred_destroy.judge, 30, 0, G.CLOSED, G.UNCLEAR),
        (lambda got: LIMITED(reclaimed=got, written=64 * MIB), 48 * MIB * 0.8, 0, G.CLOSED, G.UNCLEAR),
        (lambda got: LIMITED(reclaimed=got, written=64 * MIB), 48 * MIB * 0.02, MIB, G.OPEN, G.UNCLEAR),
        (lambda got: LIMITED(reclaimed=got, written=64 * MIB), 64 * MIB * 1.05, 99 * MIB, G.CLOSED, G.EXCESS),
        (lambda got: LIMITED(reclaimed=got, written=64 * MIB), 0, -1, G.OPEN, G.UNCLEAR),
        (lambda written: LIMITED(reclaimed=0, written=written), 32 * MIB, 0, G.OPEN, G.UNCLEAR),
        (
            lambda size: memory_limit.judge(reclaimed=0, written=0, limit=size, kills=1),
            16 * MIB,
            0,
            G.UNCLEAR,
            G.CLOSED,
        ),
        (_many, 0.95, 0, G.CLOSED, G.UNCLEAR),
        (_many, 0.02, 1, G.OPEN, G.UNCLEAR),
        (_swap("squeezed", swapped=True), 96 * MIB * 0.7, 0, G.CLOSED, G.UNCLEAR),
        (_swap("back"), 96 * MIB * 0.95, 0, G.CLOSED, G.UNCLEAR),
        (_swap("back"), 96 * MIB * 1.05, 200 * MIB, G.CLOSED, G.EXCESS),
        (_swap("reader"), 96 * MIB * 0.02, 96 * MIB, G.CLOSED, G.UNCLEAR),
        (_swap("reader", REMOVED_STAGES), 80 * MIB * 0.8, 0, G.CLOSED, G.UNCLEAR),
        (_swap("reader", REMOVED_STAGES), 96 * MIB * 1.05, 200 * MIB, G.CLOSED, G.EXCESS),
        (_swap("written"), 96 * MIB * 0.02, 96 * MIB, G.OPEN, G.UNCLEAR),
        (_swap("reader", {**STAGES, "written": (0, 0)}), 96 * MIB * 0.02, 96 * MIB, G.OPEN, G.UNCLEAR),
        (_read, 16 * MIB, 0, G.CLOSED, G.EXCESS),
        (
            lambda got: read.judge(charged=0, moved=got, owned=0, resident=16 * MIB).gap,
            16 * MIB * 0.95,
            0,
            G.OPEN,
            G.UNCLEAR,
        ),
    ],
)
def test_each_threshold_is_where_it_is(
    judge: Callable[[float], Gap], value: float, towards: float, here: Gap, there: Gap
) -> None:
    assert (judge(value), judge(math.nextafter(value, towards))) == (here, there)


def test_controls_of_a_limit_say_what_they_expected() -> None:
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


def test_what_an_idle_cgroup_saved_is_no_rate_of_its_own() -> None:
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


def test_a_killed_writer_is_held_to_its_limit_only_where_there_was_no_room() -> None:
    assert memory_limit.judge(reclaimed=0, written=7 * MIB, limit=8 * MIB, kills=1) is Gap.CLOSED
    for size in (16 * MIB, 32 * MIB):
        assert memory_limit.judge(reclaimed=0, written=7 * MIB, limit=size, kills=1) is Gap.UNCLEAR


def test_each_cgroup_must_have_its_own_bytes() -> None:
    total, ahead = sum(OWN), [int(size * 1.25) for size in OWN]
    assert many_cgroups.judge(OWN, total).gap is G.CLOSED and many_cgroups.judge(ahead, sum(ahead)).gap is G.CLOSED
    assert many_cgroups.judge([0] * 8, total).gap is G.OPEN
    # The same bytes where the disk moved no more than was asked for: that is no readahead.
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


TRACE = """\
      sh-200   [000] ..... 12.1: tracing_mark_write: == request-a
      dd-201   [000] ..... 12.2: block_rq_issue: 7,0 RS 65536 () 0 + 128 [dd]
      dd-201   [000] d..1. 12.2: workqueue_queue_work: work struct=00000000aa function=loop_workfn workqueue=loop0 req_cpu=8192 cpu=0
      dd-201   [000] d..1. 12.3: workqueue_queue_work: work struct=00000000aa function=loop_workfn workqueue=loop0 req_cpu=8192 cpu=0
      sh-200   [000] ..... 12.3: tracing_mark_write: == request-b
      dd-201   [000] d..1. 12.3: workqueue_queue_work: work struct=00000000cc function=loop_workfn workqueue=loop0 req_cpu=8192 cpu=0
      sh-200   [000] ..... 12.4: tracing_mark_write: ==
      dd-202   [000] d..1. 12.5: workqueue_queue_work: work struct=00000000bb function=loop_rootcg_workfn workqueue=loop0 req_cpu=8192 cpu=0
""".replace("==\n", "== \n")
ISSUED = "      dd-201   [000] ..... 12.2: block_rq_issue: 7,0 RS 65536 () 0 + 128 [dd]\n"


def queued(function: str, work: str) -> str:
    (line,) = (line for line in TRACE.splitlines(keepends=True) if "00000000cc" in line)
    return line.replace("00000000cc", work).replace("loop_workfn", function)


# The first issuer's requests are queued as another work as well.
ROOTS = TRACE.replace(ISSUED, ISSUED + queued("loop_rootcg_workfn", "00000000bb"))
FLUSHED = ROOTS.replace(ISSUED, ISSUED + ISSUED.replace(" RS ", " FF "))
TWO = TRACE.replace(ISSUED, ISSUED + queued("loop_workfn", "00000000dd"))


def test_the_trace_says_which_work_an_issuer_s_requests_were_queued_as() -> None:
    found = workers.traced(TRACE)
    assert {issuer: sorted(seen.works) for issuer, seen in found.items()} == {
        "request-a": [("loop_workfn", "00000000aa")],
        "request-b": [("loop_workfn", "00000000cc")],
        "root": [("loop_rootcg_workfn", "00000000bb")],
    }
    assert found["request-a"].requests == {"RS": 1}
    again = TRACE.replace(ISSUED, ISSUED + ISSUED + ISSUED.replace(" RS ", " WS "))
    assert workers.traced(again)["request-a"].requests == {"RS": 2, "WS": 1}
    assert workers.judge(found, threads=0) is workers.judge(found, threads=0, root_only=False) is G.CLOSED


@pytest.mark.parametrize(
    ("trace", "threads", "root_only", "gap"),
    [
        (TRACE, 0, False, G.CLOSED),
        (TRACE, 0, True, G.UNCLEAR),
        (TRACE.replace("loop_workfn", "loop_rootcg_workfn"), 0, True, G.CLOSED),
        (TRACE.replace("loop_workfn", "loop_rootcg_workfn"), 0, False, G.UNCLEAR),
        (TRACE.replace("00000000cc", "00000000aa"), 0, False, G.UNCLEAR),
        (TRACE.replace("function=loop_rootcg_workfn", "function=other"), 0, False, G.UNCLEAR),
        (TRACE + queued("loop_workfn", "00000000ee"), 0, False, G.UNCLEAR),
        (ROOTS, 0, False, G.UNCLEAR),
        (FLUSHED, 0, False, G.CLOSED),
        (TWO, 0, False, G.UNCLEAR),
        (TRACE.replace("function=loop", "function=other"), 1, False, G.OPEN),
        (TRACE.replace("function=loop", "function=other"), 0, False, G.UNCLEAR),
        (TRACE.replace("function=loop", "function=other"), 2, False, G.UNCLEAR),
    ],
)
def test_a_worker_for_each_cgroup_and_the_root_s_for_the_root(
    trace: str, threads: int, root_only: bool, gap: Gap
) -> None:
    assert workers.judge(workers.traced(trace), threads=threads, root_only=root_only) is gap


# What 6.1 and 5.10 printed.
@pytest.mark.parametrize(
    ("said", "gap"),
    [
        (ALIVE, G.CLOSED),
        (REMOVED, G.CLOSED),
        (BEFORE, G.OPEN),
        (
            ALIVE.replace("back 100663296", "back 6299648"),
            G.PARTIAL,
        ),  # what was swapped out is nobody's when it comes back
        (ALIVE.replace("back 100663296", "back 201326592"), G.EXCESS),
        (ALIVE.replace("written 100663296", "written 201326592"), G.EXCESS),
        (BEFORE.replace("reader 0", "reader 90000000"), G.UNCLEAR),
        (ALIVE.replace("reader 0", "reader 90000000"), G.UNCLEAR),
        (REMOVED.replace("86327296", "0"), G.PARTIAL),
        (REMOVED.replace("86327296", "40000000"), G.UNCLEAR),
        (REMOVED.replace("86327296", "201326592"), G.EXCESS),
        (ALIVE.replace("94363648", "0"), G.UNCLEAR),
    ],
)
def test_swapped_pages_must_come_back_to_their_owner(said: str, gap: Gap) -> None:
    assert swap_in.judge(swap_in.parse_stages(said, "alive" if "back" in said else "removed", "g0")).gap is gap


def test_a_removed_cgroup_is_watched_until_it_is_gone() -> None:
    assert deferred_destroy.parse_dying("read 8388608\ndying 0 1\ndying 62 0\n", "g0") == 62
    assert deferred_destroy.parse_dying("dying 0 0\n", "g0") == 0
    assert deferred_destroy.parse_dying("dying 0 1\n", "g0") is None


def test_a_stack_of_loops_gives_each_level_room_for_the_next() -> None:
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


def test_pages_that_are_in_memory_and_in_swap_at_once_say_nothing() -> None:
    written = 96 << 20
    for left, swapped in ((written, written), (0, 1 << 63)):
        seen = {"written": (written, 0), "squeezed": (left, swapped), "reader": (written, 0)}
        assert swap_in.judge(seen).gap is G.UNCLEAR


@pytest.mark.parametrize("issuer", ["request-a", "request-b", "root"])
def test_a_trace_without_one_of_the_issuers_says_nothing(issuer: str) -> None:
    found = workers.traced(TRACE)
    del found[issuer]
    assert workers.judge(found, threads=0) is G.UNCLEAR
    assert workers.judge(found, threads=0, root_only=True) is G.UNCLEAR
