"""The thresholds of the scenarios' judges."""

import math
from collections.abc import Callable
from functools import partial

import pytest

from testbed.scenarios.claims import (
    bfq_weight,
    deferred_destroy,
    io_cost,
    io_latency,
    io_limits,
    many_cgroups,
    memory_limit,
    read,
    swap_in,
)
from testbed.scenarios.verdict import Gap
from testbed.units import MIB

G = Gap


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


# A judge, the last value with one judgement, a direction, and the judgements of this value and of the next one.
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
def test_the_exact_place_of_each_threshold(
    judge: Callable[[float], Gap], value: float, towards: float, here: Gap, there: Gap
) -> None:
    assert (judge(value), judge(math.nextafter(value, towards))) == (here, there)
