"""Compares how often a case passed in two runs, in rows like those of measures (`diff`). Pure.

Each attempt that has a result passed or did not: a sample of ones and zeros. With so many equal values the exact test
of Mann and Whitney is Fisher's two-sided test. The interval of the difference is made of Wilson's intervals of both
rates: R. G. Newcombe, "Interval estimation for the difference between independent proportions" (1998), method 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from testbed.bugs.statistics import Rate
from testbed.report import rank_test
from testbed.report.comparison import Row
from testbed.report.schema import Case

UNIT = "% of the attempts"
# A skipped attempt, or one whose guest was lost, says nothing about its kernel.
_NO_RESULT = ("SKIP", "INFRA")


def rows(old: Case, new: Case, kernels: Sequence[str]) -> Iterator[Row]:
    """Make the rows of one case, if a run has several attempts and not all of both runs have the same result: one for
    each of `kernels`, which are judged alone, or one for the pair, whose `kernel` is empty."""
    if not (old.attempts or new.attempts):
        return
    for kernel in kernels or ("",):
        first, second = _passed(old, kernel), _passed(new, kernel)
        if first and second and len({*first, *second}) > 1:
            yield _compare(new.name, kernel, first, second)


def _passed(case: Case, kernel: str) -> list[float]:
    """Return 1 for each attempt that passed, and 0 for each that did not."""
    verdicts = [attempt.sides[kernel].verdict if kernel else attempt.verdict for attempt in case.all_attempts]
    return [float(verdict == "PASS") for verdict in verdicts if verdict not in _NO_RESULT]


def _compare(case: str, kernel: str, first: list[float], second: list[float]) -> Row:
    before, after = (Rate(hits=int(sum(sample)), tries=len(sample)) for sample in (first, second))
    shift = interval = p = None
    if min(before.tries, after.tries) >= rank_test.LEAST:
        difference = after.share - before.share
        low = difference - math.hypot(after.share - after.low, before.high - before.share)
        high = difference + math.hypot(after.high - after.share, before.share - before.low)
        shift, interval, p = 100 * difference, (100 * low, 100 * high), rank_test.p_value(first, second)
    return Row(
        case=case,
        kernel=kernel,
        measure="passed",
        unit=UNIT,
        attempts=(before.tries, after.tries),
        before=100 * before.share,
        after=100 * after.share,
        shift=shift,
        interval=interval,
        p=p,
    )
