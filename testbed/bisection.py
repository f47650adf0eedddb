"""Between which two kernels of an ordered list a bug came, or went. Pure: numbers of kernels go out, answers come in."""

from __future__ import annotations

import enum
import math
from collections.abc import Generator
from dataclasses import dataclass


class Answer(enum.Enum):
    """Of one kernel. SKIP: it cannot be tried."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """The change is after the number `good` and not after `bad`, or the other way round where the bug went; `skipped` lie between them.

    `wrong`: an end that is not what it was said to be, in words; then nothing else is known.
    """

    good: int
    bad: int
    skipped: tuple[int, ...] = ()
    wrong: str = ""


Search = Generator[int, Answer, Between]


def bisecting(good: int, bad: int) -> Search:
    """Asks for both ends first, then for the middle of what is left; numbers are places in the list."""
    for end, expected in ((bad, Answer.BAD), (good, Answer.GOOD)):
        answer = yield end
        if answer is not expected:
            return Between(good=good, bad=bad, wrong=f"expected it to be {expected.value}, it is {answer.value}")
    skipped: set[int] = set()
    while True:
        low, high = min(good, bad), max(good, bad)
        left = [number for number in range(low + 1, high) if number not in skipped]
        if not left:
            return Between(good=good, bad=bad, skipped=tuple(sorted(number for number in skipped if low < number < high)))
        middle = (low + high) / 2
        number = min(left, key=lambda number: (abs(number - middle), number))
        answer = yield number
        if answer is Answer.GOOD:
            good = number
        elif answer is Answer.BAD:
            bad = number
        else:
            skipped.add(number)


def most_steps(good: int, bad: int) -> int:
    """How many kernels between the ends are asked for at most, where none is skipped."""
    between = abs(good - bad) - 1
    return math.ceil(math.log2(between + 1)) if between > 0 else 0
