"""Tests whether a bug is absent: tells a kernel without hits apart from one with hits, at 95 %; and how many tries that
takes. Pure.

Told apart means that the odds of showing (25 % are 1 to 3) are more than 19/3 times as high on the showing kernel. So
25 % and 5 %, which differ by just that, are never told apart, whatever the number of tries: a bug that shows less often
is not gone.

The test is an e-value: the likelihood of the tries if the bug never shows on the clean kernel, averaged over the rates
of the showing one, divided by their greatest likelihood under the null hypothesis. Under the null hypothesis its
expectation is at most 1 at any time, so that it reaches 20 in at most 5 % of all runs, with any stopping rule and any
number of looks; no correction for them is needed. Where several kernels are compared, every pair has to be told apart,
so that the claim about all of them is wrong no more often than that about one.

Sources: J. Ville, "Étude critique de la notion de collectif" (1939), the inequality; L. Wasserman, A. Ramdas, S.
Balakrishnan, "Universal inference" (2020), the greatest likelihood below the line.
"""

from __future__ import annotations

import math

from testbed.bugs.statistics import Rate

# The odds of 25 % over those of 5 %.
MARGIN = 19 / 3
# The logarithm of the inverse of the probability of a wrong claim.
_WANTED = math.log(20)
# The prior of the showing kernel's rate: a Beta distribution. With it, bugs that show nearly always need the fewest
# tries: 6 per kernel.
_WEIGHT = (2.0, 0.5)
# The search for a number of tries ends here.
_MOST = 1 << 20


def is_absent(shown: Rate, misses: int) -> bool:
    """Whether `misses` tries without a hit differ from another kernel's rate `shown` by more than the margin."""
    return bool(shown.hits) and log_evidence(shown, misses) >= _WANTED


def fewest_misses(shown: Rate) -> int | None:
    """Return the fewest tries without a hit that are told apart; None where no number of tries is enough."""
    if not is_absent(shown, _MOST):
        return None
    low, high = 0, _MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_absent(shown, middle) else (middle, high)
    return high


def has_enough_tries(shown: Rate, most: int) -> bool:
    """Whether a showing kernel has had enough tries: as many misses on the other would be told apart, or cannot be any
    more within `most` tries."""
    if is_absent(shown, shown.tries):
        return True
    left = most - shown.tries
    best = Rate(hits=shown.hits + left, tries=most) if left > 0 else shown
    return shown.hits > 0 and not is_absent(best, most)


def tries_for_share(share: float) -> int:
    """Return how many tries on each kernel tell a bug apart that shows in exactly this share (above 0) of them, to two
    digits."""
    low, high = 1, _MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if is_absent(Rate(hits=int(share * middle + 1e-9), tries=middle), middle) else (middle, high)
        )
    step: int = 10 ** max(0, len(str(high)) - 2)
    return math.ceil(high / step) * step


def log_evidence(shown: Rate, misses: int) -> float:
    """Return the logarithm of the e-value of `shown` on one kernel and `misses` without a hit on the other."""
    a, b = _WEIGHT
    averaged = _log_beta(shown.hits + a, shown.tries - shown.hits + b) - _log_beta(a, b)
    return averaged - _greatest(shown, misses)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _greatest(shown: Rate, misses: int) -> float:
    """Return the greatest log likelihood under the null hypothesis, which is where the odds differ by exactly the
    margin.

    It is concave in the log odds; its derivative has its only zero where the number of hits equals its expectation.
    """
    if not shown.hits:
        return 0.0
    shift = math.log(MARGIN)
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        expected = shown.tries * _share(middle) + misses * _share(middle - shift)
        low, high = (low, middle) if expected > shown.hits else (middle, high)
    return shown.hits * low - shown.tries * _log_one_more(low) - misses * _log_one_more(low - shift)


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _log_one_more(log_odds: float) -> float:
    """log(1 + odds), without overflow."""
    return max(0.0, log_odds) + math.log1p(math.exp(-abs(log_odds)))
