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


class Charge(enum.Enum):
    """What a measurement showed of who pays."""

    CHARGED = "charged to the cgroup"
    BYPASSED = "not charged to the cgroup"
    UNCLEAR = "neither clearly charged nor clearly not"


# Measured shares are 0.99 to 1.01 where the kernel charges, and 0 where it does not; readahead and metadata are the rest.
_CHARGED_FROM, _BYPASSED_TO = 0.95, 0.02


def charge(share: float) -> Charge:
    """Judge A's share of a total, 0 to 1 (a little above 1 happens: readahead)."""
    if share >= _CHARGED_FROM:
        return Charge.CHARGED
    return Charge.BYPASSED if share <= _BYPASSED_TO else Charge.UNCLEAR


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a scenario brought back from one kernel."""

    claim: Charge
    reason: str
    measures: tuple[Measure, ...]
    controls: tuple[Control, ...]


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


def judge_single(outcome: Outcome, expected: Charge) -> Judgement:
    """One kernel against what is expected of it."""
    early = _without_evidence(("kernel", outcome))
    if early is not None:
        return early
    assert isinstance(outcome, Evidence)
    if outcome.claim is Charge.UNCLEAR:
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
        if evidence.claim is Charge.UNCLEAR:
            return Judgement(verdict=Verdict.INVALID, reason=f"{side} is inconclusive: {evidence.reason}")
    if base.claim is not Charge.BYPASSED:
        return Judgement(verdict=Verdict.INVALID, reason=f"the base does not show the bypass: {base.reason}")
    if patched.claim is not Charge.CHARGED:
        return Judgement(verdict=Verdict.FAIL, reason=f"the patched kernel does not charge: {patched.reason}")
    return Judgement(verdict=Verdict.PASS, reason="the base bypasses the cgroup, the patched kernel charges it")


EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INFRA: 2, Verdict.INVALID: 3, Verdict.SKIP: 4}


def overall(verdicts: tuple[Verdict, ...]) -> Verdict:
    """The verdict of a run: the gravest of its scenarios', and SKIP only where everything was skipped."""
    for verdict in (Verdict.FAIL, Verdict.INFRA, Verdict.INVALID, Verdict.PASS):
        if verdict in verdicts:
            return verdict
    return Verdict.SKIP
