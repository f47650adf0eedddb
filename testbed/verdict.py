"""Evidence to a verdict. Pure: numbers in, words out."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """PASS: the base shows the gap and the patched kernel closes it. FAIL: the patched kernel does not. INVALID: the comparison says
    nothing (the base shows no gap, a control misbehaved, a measure is inconclusive). SKIP: a need is missing. INFRA: no evidence."""

    PASS = "PASS"  # noqa: S105 - a word, no password
    FAIL = "FAIL"
    INVALID = "INVALID"
    SKIP = "SKIP"
    INFRA = "INFRA"


class Gap(enum.Enum):
    """What a measurement showed of the gap that the series closes: I/O of a loop device that nobody's cgroup pays for, and what follows."""

    CLOSED = "as with the series"
    OPEN = "as before the series"
    UNCLEAR = "neither clearly as with the series nor clearly as before it"


# Measured shares are 0.99 to 1.01 where the kernel charges, and 0 where it does not; readahead and metadata are the rest.
_CHARGED_FROM, _BYPASSED_TO = 0.95, 0.02


def of_share(share: float) -> Gap:
    """Judge A's share of a total, 0 to 1 (a little above 1 happens: readahead)."""
    if share >= _CHARGED_FROM:
        return Gap.CLOSED
    return Gap.OPEN if share <= _BYPASSED_TO else Gap.UNCLEAR


def of_pages(owned: int, resident: int, asked: int) -> Gap:
    """Judge the page cache that a cgroup pays for against the backing file's pages in memory. Readahead may add to what was asked."""
    if resident < asked * 0.95:
        return Gap.UNCLEAR
    return Gap.OPEN if owned <= asked * _BYPASSED_TO else of_share(owned / resident) if owned <= resident * 1.05 else Gap.UNCLEAR


def agreed(*gaps: Gap) -> Gap:
    """What several measurements of one claim say together: the same, or nothing."""
    return gaps[0] if len(set(gaps)) == 1 else Gap.UNCLEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number: `unit` is its unit, `source` the file or command where it was read."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A measurement whose outcome is known; one that comes out otherwise makes the evidence void."""

    name: str
    expected: str
    got: str
    holds: bool


# Counters that count the same bytes agree within this; more is worth a look.
_BALANCED = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The same bytes counted in two places: what the guest's kernel accounted for, and what really moved (or is resident)."""

    what: str
    accounted: int
    real: int

    @property
    def share(self) -> float:
        """The difference as a share of the larger of the two."""
        return abs(self.accounted - self.real) / max(self.accounted, self.real, 1)

    @property
    def is_finding(self) -> bool:
        return self.share > _BALANCED


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a scenario brought back from one kernel."""

    claim: Gap
    reason: str
    measures: tuple[Measure, ...]
    controls: tuple[Control, ...]
    balances: tuple[Balance, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """The kernel, guest or host lacks what the scenario needs."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The guest or the host failed before there was evidence."""

    why: str


Outcome = Evidence | Skipped | Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    verdict: Verdict
    reason: str


def judge_pair(base: Outcome, patched: Outcome) -> Judgement:
    """A base kernel, which must show the gap, against a patched one, which must have closed it."""
    return _without_evidence(("base", base), ("patched", patched)) or _claims(base, patched)


def judge_single(outcome: Outcome, expected: Gap) -> Judgement:
    """One kernel against what is expected of it."""
    early = _without_evidence(("kernel", outcome))
    if early is not None:
        return early
    assert isinstance(outcome, Evidence)
    if outcome.claim is Gap.UNCLEAR:
        return Judgement(verdict=Verdict.INVALID, reason=f"inconclusive: {outcome.reason}")
    verdict = Verdict.PASS if outcome.claim is expected else Verdict.FAIL
    return Judgement(verdict=verdict, reason=f"expected {expected.value}: {outcome.reason}")


def _without_evidence(*sides: tuple[str, Outcome]) -> Judgement | None:
    """The judgement where some side has no usable evidence; the gravest reason first."""
    for side, outcome in sides:
        if isinstance(outcome, Lost):
            return Judgement(verdict=Verdict.INFRA, reason=f"{side}: {outcome.why}")
    for side, outcome in sides:
        if isinstance(outcome, Skipped):
            return Judgement(verdict=Verdict.SKIP, reason=f"{side}: {outcome.why}")
    for side, outcome in sides:
        if isinstance(outcome, Evidence):
            for control in outcome.controls:
                if not control.holds:
                    reason = f"{side}: control {control.name}: expected {control.expected}, got {control.got}"
                    return Judgement(verdict=Verdict.INVALID, reason=reason)
    return None


def _claims(base: Outcome, patched: Outcome) -> Judgement:
    assert isinstance(base, Evidence) and isinstance(patched, Evidence)
    for side, evidence in (("base", base), ("patched", patched)):
        if evidence.claim is Gap.UNCLEAR:
            return Judgement(verdict=Verdict.INVALID, reason=f"{side} is inconclusive: {evidence.reason}")
    if base.claim is not Gap.OPEN:
        return Judgement(verdict=Verdict.INVALID, reason=f"the base does not show the gap: {base.reason}")
    if patched.claim is not Gap.CLOSED:
        return Judgement(verdict=Verdict.FAIL, reason=f"the patched kernel does not close the gap: {patched.reason}")
    return Judgement(verdict=Verdict.PASS, reason=f"base: {base.reason}; patched: {patched.reason}")


_GRAVITY = (Verdict.FAIL, Verdict.INFRA, Verdict.INVALID, Verdict.PASS, Verdict.SKIP)


def gravest(judgements: tuple[Judgement, ...]) -> Judgement:
    """The gravest of some judgements, the first of its kind."""
    return min(judgements, key=lambda judgement: _GRAVITY.index(judgement.verdict))


EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INFRA: 2, Verdict.INVALID: 3, Verdict.SKIP: 4}


def overall(verdicts: tuple[Verdict, ...]) -> Verdict:
    """The verdict of a run: the gravest of its scenarios', and SKIP only where everything was skipped."""
    return min(verdicts, key=_GRAVITY.index, default=Verdict.SKIP)
