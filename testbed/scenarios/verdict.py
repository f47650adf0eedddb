"""Evidence to a verdict. Pure: numbers in, words out."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Verdict(enum.Enum):
    """PASS: the base shows the gap and the patched kernel closes it. FAIL: the patched kernel does not, or in part, or charges too much.
    INVALID: the comparison says nothing (the base shows no gap, a control misbehaved, a measure is inconclusive). SKIP: a need is missing.
    INFRA: no evidence; of a run, that it ended early, too."""

    PASS = "PASS"  # noqa: S105 - a word, no password
    FAIL = "FAIL"
    INVALID = "INVALID"
    SKIP = "SKIP"
    INFRA = "INFRA"


class Gap(enum.Enum):
    """What a measurement showed of the gap that the series closes: I/O of a loop device that nobody's cgroup pays for, and what follows.

    PARTIAL: sound measures of one claim, of which some show the gap and some do not. EXCESS: more was charged than there was.
    """

    CLOSED = "as with the series"
    OPEN = "as before the series"
    PARTIAL = "in part as with the series, in part as before it"
    EXCESS = "more was charged than there was"
    UNCLEAR = "neither clearly as with the series nor clearly as before it"


# Measured shares are 0.99 to 1.01 where the kernel charges, and 0 where it does not (docs/results/four-kernels.md). What the device moved
# and what is in memory are measured with their readahead, so that a share has a bound above as well.
_CHARGED_FROM, _CHARGED_TO, _BYPASSED_TO = 0.95, 1.05, 0.02


def share_gap(charged: float, total: float, *, least: float, ahead: float = 0) -> Gap:
    """Judge what a cgroup was charged as a share of what there was to charge, both in one unit; `least`: the total from which a share tells
    anything; `ahead`: what was measured to be read ahead beyond the total, and may be charged as well."""
    if not (math.isfinite(charged) and math.isfinite(total)) or charged < 0 or total < max(least, 1):
        return Gap.UNCLEAR
    if charged > total * _CHARGED_TO + ahead:
        return Gap.EXCESS
    if charged >= total * _CHARGED_FROM:
        return Gap.CLOSED
    return Gap.OPEN if charged <= total * _BYPASSED_TO else Gap.UNCLEAR


def pages_gap(owned: int, resident: int, asked: int) -> Gap:
    """Judge the page cache that a cgroup pays for against the backing file's pages in memory, bytes. Readahead may add to what was
    asked."""
    if resident < asked * _CHARGED_FROM:
        return Gap.UNCLEAR
    return Gap.OPEN if 0 <= owned <= asked * _BYPASSED_TO else share_gap(owned, resident, least=asked * _CHARGED_FROM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One measure of a claim; `times`: what was charged over what there was, where both are known."""

    what: str
    gap: Gap
    times: float | None = None


def share_of(what: str, charged: int, total: int, *, least: float) -> Part:
    """A part of a claim that is a share; see `of_share`."""
    return Part(what=what, gap=share_gap(charged, total, least=least), times=charged / total if total > 0 else None)


def pages_of(what: str, owned: int, resident: int, asked: int) -> Part:
    """A part of a claim that is page cache; see `of_pages`."""
    return Part(what=what, gap=pages_gap(owned, resident, asked), times=owned / resident if resident > 0 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the parts of a claim show together; `note` names those that differ, to be put behind a reason, or is empty."""

    gap: Gap
    note: str


def join_parts(*parts: Part) -> Claim:
    """Judge the parts of one claim: an excess in any is one; what is unclear in any is unclear; parts that differ are PARTIAL."""
    if not parts:
        return Claim(gap=Gap.UNCLEAR, note="; nothing was measured")
    if excess := [part for part in parts if part.gap is Gap.EXCESS]:
        said = ", ".join(part.what + ("" if part.times is None else f" {part.times:.1f} times") for part in excess)
        return Claim(gap=Gap.EXCESS, note=f"; charged more than there was: {said}")
    if unclear := _names(parts, Gap.UNCLEAR, Gap.PARTIAL):
        return Claim(gap=Gap.UNCLEAR, note=f"; unclear: {unclear}" if len(parts) > 1 else "")
    closed, missing = _names(parts, Gap.CLOSED), _names(parts, Gap.OPEN)
    if closed and missing:
        return Claim(gap=Gap.PARTIAL, note=f"; charged: {closed}; not charged: {missing}")
    return Claim(gap=Gap.CLOSED if closed else Gap.OPEN, note="")


def _names(parts: tuple[Part, ...], *gaps: Gap) -> str:
    return ", ".join(part.what for part in parts if part.gap in gaps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number: `unit` is its unit, `source` the file or command where it was read."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A measurement whose outcome is known; one that comes out otherwise makes the evidence void.

    `excess`: it does not hold because more was charged than there was. A kernel that charges twice does so here, too: where the claim is an
    excess as well, such a control confirms it.
    """

    name: str
    expected: str
    got: str
    holds: bool
    excess: bool = False


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
    if outcome.claim is expected:
        return Judgement(verdict=Verdict.PASS, reason=f"expected {expected.value}: {outcome.reason}")
    return Judgement(
        verdict=Verdict.FAIL, reason=f"expected {expected.value}, got {outcome.claim.value}: {outcome.reason}"
    )


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
                if not control.holds and not (control.excess and outcome.claim is Gap.EXCESS):
                    reason = f"{side}: control {control.name}: expected {control.expected}, got {control.got}"
                    return Judgement(verdict=Verdict.INVALID, reason=reason)
    return None


# How a patched kernel fails.
_FAILS = {
    Gap.OPEN: "does not close the gap",
    Gap.PARTIAL: "closes the gap only in part",
    Gap.EXCESS: "charges more than there was",
}


def _claims(base: Outcome, patched: Outcome) -> Judgement:
    assert isinstance(base, Evidence) and isinstance(patched, Evidence)
    for side, evidence in (("base", base), ("patched", patched)):
        if evidence.claim is Gap.UNCLEAR:
            return Judgement(verdict=Verdict.INVALID, reason=f"{side} is inconclusive: {evidence.reason}")
    if base.claim is not Gap.OPEN:
        only = " in full" if base.claim is Gap.PARTIAL else ""
        return Judgement(verdict=Verdict.INVALID, reason=f"the base does not show the gap{only}: {base.reason}")
    if patched.claim is not Gap.CLOSED:
        return Judgement(verdict=Verdict.FAIL, reason=f"the patched kernel {_FAILS[patched.claim]}: {patched.reason}")
    return Judgement(verdict=Verdict.PASS, reason=f"base: {base.reason}; patched: {patched.reason}")


_GRAVITY = (Verdict.FAIL, Verdict.INFRA, Verdict.INVALID, Verdict.PASS, Verdict.SKIP)


def worst(judgements: tuple[Judgement, ...]) -> Judgement:
    """The gravest of some judgements, the first of its kind."""
    return min(judgements, key=lambda judgement: _GRAVITY.index(judgement.verdict))


EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INFRA: 2, Verdict.INVALID: 3, Verdict.SKIP: 4}


def overall_verdict(verdicts: tuple[Verdict, ...], *, partial: bool = False) -> Verdict:
    """The verdict of a run: the gravest of its scenarios', and SKIP only where everything was skipped. `partial`: others were to come, so
    that nothing but FAIL is known of the run.
    """
    if partial:
        return Verdict.FAIL if Verdict.FAIL in verdicts else Verdict.INFRA
    return min(verdicts, key=_GRAVITY.index, default=Verdict.SKIP)
