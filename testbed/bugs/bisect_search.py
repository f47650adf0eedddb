"""Between which two kernels of an ordered list a bug came, or went. Pure: numbers of kernels go out, answers come in."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass


class BisectAnswer(enum.Enum):
    """Of one kernel. SKIP: it cannot be tried."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class BisectRange:
    """The change is after the number `good` and not after `bad`, or the other way round where the bug went; `skipped` lie between them.

    `wrong`: why there is no such change, in words: an end that is not what it was said to be, or a bug that comes and goes (`wavers`).
    """

    good: int
    bad: int
    skipped: tuple[int, ...] = ()
    wrong: str = ""
    wavers: bool = False


Search = Generator[int, BisectAnswer, BisectRange]


def bisect(good: int, bad: int) -> Search:
    """Asks for both ends first, then for the middle of what is left; numbers are places in the list.

    That finds one change of possibly many. So at last the middle of what was passed over on either side is asked: where that is not as its
    end is, the bug comes and goes.
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
    """What to say of ends that are not as they were said to be; where both are alike, the middle may differ from them."""
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
    """How many kernels between the ends are asked for at most, where none is skipped: those of the search, and two that check it."""
    between = abs(good - bad) - 1
    return math.ceil(math.log2(between + 1)) + min(2, between) if between > 0 else 0
