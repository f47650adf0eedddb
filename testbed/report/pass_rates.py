"""How often a case passed in two runs: rows of a comparison, like those of measures (`diff`). Pure.

Each attempt that has a result passed or did not, which is a sample of ones and zeros; with so many equal values the exact test of Mann and
Whitney is Fisher's, on both sides. The interval of the difference is made of Wilson's of either rate: R. G. Newcombe, "Interval estimation
for the difference between independent proportions" (1998), method 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from testbed.bugs.statistics import Rate
from testbed.report import rank_test

UNIT = "% of the attempts"
# An attempt that was skipped, or whose guest was lost, says nothing of its kernel.
_NO_RESULT = ("SKIP", "INFRA")


def rows(old: dict[str, Any], new: dict[str, Any], kernels: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows for one case, where either run has several attempts and not all of both came out alike: for each of `kernels` that are judged
    alone, or one for the pair, whose `kernel` is empty."""
    if not (old.get("attempts") or new.get("attempts")):
        return
    for kernel in kernels or ("",):
        first, second = _passed(old, kernel), _passed(new, kernel)
        if first and second and len({*first, *second}) > 1:
            yield {
                "case": new["name"],
                "kernel": kernel,
                "measure": "passed",
                "unit": UNIT,
                "change": None,
                **_compared(first, second),
            }


def _passed(case: dict[str, Any], kernel: str) -> list[float]:
    verdicts = [(attempt[kernel] if kernel else attempt)["verdict"] for attempt in case.get("attempts") or [case]]
    return [float(verdict == "PASS") for verdict in verdicts if verdict not in _NO_RESULT]


def _compared(first: list[float], second: list[float]) -> dict[str, Any]:
    before, after = (Rate(hits=int(sum(one)), tries=len(one)) for one in (first, second))
    found: dict[str, Any] = {
        "attempts": [before.tries, after.tries],
        "before": 100 * before.share,
        "after": 100 * after.share,
    }
    if min(before.tries, after.tries) < rank_test.LEAST:
        return found | {"shift": None, "interval": None, "p": None}
    shift = after.share - before.share
    low = shift - math.hypot(after.share - after.low, before.high - before.share)
    high = shift + math.hypot(after.high - after.share, before.share - before.low)
    return found | {"shift": 100 * shift, "interval": [100 * low, 100 * high], "p": rank_test.p_value(first, second)}
