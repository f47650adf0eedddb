"""Judges evidence: turns measurements into a verdict and its reason. Pure."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Verdict(enum.Enum):
    """The verdict on a case or a run.

    PASS: the base shows the gap, and the patched kernel closes it. FAIL: the patched kernel does not close it, or only
    in part, or charges too much. INVALID: the comparison is inconclusive (the base shows no gap, a control failed, or a
    measurement is unclear). SKIP: a need is missing. INFRA: there is no evidence; or the run ended early.
    """

    PASS = "PASS"  # noqa: S105 - a word, no password
    FAIL = "FAIL"
    INVALID = "INVALID"
    SKIP = "SKIP"
    INFRA = "INFRA"


class Gap(enum.Enum):
    """What a measurement shows about the gap that the series closes: I/O of a loop that is charged to no cgroup.

    PARTIAL: some parts of the claim show the gap, and some do not. EXCESS: more was charged than there was.
    """

    CLOSED = "as with the series"
    OPEN = "as before the series"
    PARTIAL = "in part as with the series, in part as before it"
    EXCESS = "more was charged than there was"
    UNCLEAR = "neither clearly as with the series nor clearly as before it"


# Measured shares are 0.99 to 1.01 if the kernel charges, and 0 if it does not (docs/results/four-kernels.md). The bytes
# that the device moved and the resident pages include readahead, so that a share has an upper bound as well.
_CHARGED_FROM, _CHARGED_TO, _BYPASSED_TO = 0.95, 1.05, 0.02


def share_gap(charged: float, total: float, *, least: float, ahead: float = 0) -> Gap:
    """Judge what a cgroup was charged as a share of the total, both in the same unit.

    `least`: with a smaller total the share is unclear. `ahead`: measured readahead beyond the total, which may be
    charged as well.
    """
    if not (math.isfinite(charged) and math.isfinite(total)) or charged < 0 or total < max(least, 1):
        return Gap.UNCLEAR
    if charged > total * _CHARGED_TO + ahead:
        return Gap.EXCESS
    if charged >= total * _CHARGED_FROM:
        return Gap.CLOSED
    return Gap.OPEN if charged <= total * _BYPASSED_TO else Gap.UNCLEAR


def pages_gap(owned: int, resident: int, asked: int) -> Gap:
    """Judge the page cache charged to a cgroup against the resident pages of the backing file, in bytes.

    `asked`: the bytes that were requested; readahead can add to them.
    """
    if resident < asked * _CHARGED_FROM:
        return Gap.UNCLEAR
    return Gap.OPEN if 0 <= owned <= asked * _BYPASSED_TO else share_gap(owned, resident, least=asked * _CHARGED_FROM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a claim. `times`: what was charged divided by what there was, if both are known."""

    what: str
    gap: Gap
    times: float | None = None


def share_of(what: str, charged: int, total: int, *, least: float) -> Part:
    """Make a part of a claim from a share; see `share_gap`."""
    return Part(what=what, gap=share_gap(charged, total, least=least), times=charged / total if total > 0 else None)


def pages_of(what: str, owned: int, resident: int, asked: int) -> Part:
    """Make a part of a claim from page cache; see `pages_gap`."""
    return Part(what=what, gap=pages_gap(owned, resident, asked), times=owned / resident if resident > 0 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the parts of a claim show together. `note`: names parts that differ, for appending to a reason; or empty."""

    gap: Gap
    note: str


def join_parts(*parts: Part) -> Claim:
    """Judge the parts of one claim: EXCESS if any is, otherwise UNCLEAR if any is, otherwise PARTIAL if they differ."""
    if not parts:
        return Claim(gap=Gap.UNCLEAR, note="; nothing was measured")
    if excess := [part for part in parts if part.gap is Gap.EXCESS]:
        parts_text = ", ".join(
            part.what + ("" if part.times is None else f" {part.times:.1f} times") for part in excess
        )
        return Claim(gap=Gap.EXCESS, note=f"; charged more than there was: {parts_text}")
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
    """One measured number. `source`: the file or command that it was read from."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A measurement whose outcome is known in advance; with another outcome the evidence is invalid.

    `excess`: it does not hold because more was charged than there was. A kernel that charges twice does that in
    controls, too: if the claim is an excess as well, such a control confirms it.
    """

    name: str
    expected: str
    got: str
    holds: bool
    excess: bool = False


# Counters of the same bytes agree within this share; a larger difference is a finding.
_BALANCED = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The same bytes counted in two places: by the accounting of the guest's kernel, and as they really moved.

    `real`: bytes that the device moved, or that are resident.
    """

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
    """What a scenario measured on one kernel."""

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
    """The guest or the host failed, so that there is no evidence."""

    why: str


Outcome = Evidence | Skipped | Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    verdict: Verdict
    reason: str


def judge_pair(base: Outcome, patched: Outcome) -> Judgement:
    """Judge a base kernel, which must show the gap, and a patched kernel, which must have closed it."""
    return _without_evidence(("base", base), ("patched", patched)) or _claims(base, patched)


def judge_single(outcome: Outcome, expected: Gap) -> Judgement:
    """Judge one kernel against its expectation."""
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
    """Return the judgement if a side has no usable evidence; the most serious reason wins."""
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


# How a patched kernel fails, as the reason says it.
_FAILS = {
    Gap.OPEN: "does not close the gap",
    Gap.PARTIAL: "closes the gap only in part",
    Gap.EXCESS: "charges more than there was",
}


# What each kernel of a pair must show for a PASS; the readers of results check the same.
PAIR_GAPS = {"base": Gap.OPEN, "patched": Gap.CLOSED}


def _claims(base: Outcome, patched: Outcome) -> Judgement:
    assert isinstance(base, Evidence) and isinstance(patched, Evidence)
    for side, evidence in (("base", base), ("patched", patched)):
        if evidence.claim is Gap.UNCLEAR:
            return Judgement(verdict=Verdict.INVALID, reason=f"{side} is inconclusive: {evidence.reason}")
    if base.claim is not PAIR_GAPS["base"]:
        only = " in full" if base.claim is Gap.PARTIAL else ""
        return Judgement(verdict=Verdict.INVALID, reason=f"the base does not show the gap{only}: {base.reason}")
    if patched.claim is not PAIR_GAPS["patched"]:
        return Judgement(verdict=Verdict.FAIL, reason=f"the patched kernel {_FAILS[patched.claim]}: {patched.reason}")
    return Judgement(verdict=Verdict.PASS, reason=f"base: {base.reason}; patched: {patched.reason}")


_GRAVITY = (Verdict.FAIL, Verdict.INFRA, Verdict.INVALID, Verdict.PASS, Verdict.SKIP)


def worst(judgements: tuple[Judgement, ...]) -> Judgement:
    """Return the most serious judgement, the first of several equal ones."""
    return min(judgements, key=lambda judgement: _GRAVITY.index(judgement.verdict))


EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INFRA: 2, Verdict.INVALID: 3, Verdict.SKIP: 4}


def overall_verdict(verdicts: tuple[Verdict, ...], *, partial: bool = False) -> Verdict:
    """Return the verdict of a run: the most serious of its cases, and SKIP only if everything was skipped.

    `partial`: the run ended early, so that only FAIL is certain.
    """
    if partial:
        return Verdict.FAIL if Verdict.FAIL in verdicts else Verdict.INFRA
    return min(verdicts, key=_GRAVITY.index, default=Verdict.SKIP)
