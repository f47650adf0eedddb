"""The search of a bisection, as a generator: yields indexes of kernels in an ordered list, and is sent answers.
Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass


class BisectAnswer(enum.Enum):
    """The answer of one kernel. SKIP: it cannot be tried."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class BisectRange:
    """The change is between the kernels at the indexes `good` and `bad`; those at `skipped` lie between them.

    `wrong`: why there is no such change: an end is not as it was given, or the bug comes and goes along the list
    (`wavers`).
    """

    good: int
    bad: int
    skipped: tuple[int, ...] = ()
    wrong: str = ""
    wavers: bool = False


Search = Generator[int, BisectAnswer, BisectRange]


def bisect(good: int, bad: int) -> Search:
    """Ask for both ends first, then always for the middle of what is left.

    That finds one change of possibly many. So at last it asks for the middle of the part that was passed over on each
    side: where the answer is not that of the side's end, the bug comes and goes.
    """
    ends = {bad: BisectAnswer.BAD, good: BisectAnswer.GOOD}
    found = {}
    for end in ends:
        found[end] = yield end
        if found[end] is BisectAnswer.SKIP:
            return BisectRange(good=good, bad=bad, wrong="it cannot be tried")
    if found != ends:
        return (yield from _wrong_ends(good, bad, found))
    last, skipped = {BisectAnswer.GOOD: good, BisectAnswer.BAD: bad}, set[int]()
    while left := _between(last[BisectAnswer.GOOD], last[BisectAnswer.BAD], skipped):
        number = _middle(left, last[BisectAnswer.GOOD], last[BisectAnswer.BAD])
        answer = yield number
        if answer is BisectAnswer.SKIP:
            skipped.add(number)
        else:
            last[answer] = number
    for end, expected in ends.items():
        passed = _between(end, last[expected], skipped)
        if passed:
            answer = yield _middle(passed, end, last[expected])
            if answer not in (expected, BisectAnswer.SKIP):
                return BisectRange(good=good, bad=bad, wrong="it comes and goes", wavers=True)
    now_good, now_bad = last[BisectAnswer.GOOD], last[BisectAnswer.BAD]
    low, high = min(now_good, now_bad), max(now_good, now_bad)
    return BisectRange(
        good=now_good, bad=now_bad, skipped=tuple(sorted(number for number in skipped if low < number < high))
    )


def _wrong_ends(good: int, bad: int, found: Mapping[int, BisectAnswer]) -> Search:
    """Return what is wrong with the ends; where both have the same answer, ask for the middle, which may differ."""
    if found[good] is not found[bad]:
        return BisectRange(good=good, bad=bad, wrong="the ends are the other way round")
    inside = _between(good, bad, ())
    if inside:
        answer = yield _middle(inside, good, bad)
        if answer not in (found[good], BisectAnswer.SKIP):
            return BisectRange(good=good, bad=bad, wrong="it comes and goes", wavers=True)
    return BisectRange(good=good, bad=bad, wrong=f"both ends are {found[good].value}")


def _between(one: int, other: int, without: Collection[int]) -> list[int]:
    return [number for number in range(min(one, other) + 1, max(one, other)) if number not in without]


def _middle(numbers: list[int], one: int, other: int) -> int:
    return min(numbers, key=lambda number: (abs(number - (one + other) / 2), number))


def most_steps(good: int, bad: int) -> int:
    """Return how many kernels between the ends are asked for at most if none is skipped: those of the search, and two
    that check it."""
    between = abs(good - bad) - 1
    return math.ceil(math.log2(between + 1)) + min(2, between) if between > 0 else 0
