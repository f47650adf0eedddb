import itertools

import pytest

from testbed import verdict
from testbed.verdict import Control, Evidence, Gap, Lost, Outcome, Skipped, Verdict


def evidence(claim: Gap, *, control_holds: bool = True) -> Evidence:
    control = Control(name="c", expected="x", got="y", holds=control_holds)
    return Evidence(claim=claim, reason="so", measures=(), controls=(control,))


CHARGED, BYPASSED, UNCLEAR = (evidence(claim) for claim in (Gap.CLOSED, Gap.OPEN, Gap.UNCLEAR))
BROKEN = evidence(Gap.CLOSED, control_holds=False)
BROKEN_BYPASS = evidence(Gap.OPEN, control_holds=False)
SKIPPED, LOST = Skipped(why="lacks io"), Lost(why="panicked")

PAIRS: list[tuple[Outcome, Outcome, Verdict]] = [
    (BYPASSED, CHARGED, Verdict.PASS),
    (BYPASSED, BYPASSED, Verdict.FAIL),
    (CHARGED, CHARGED, Verdict.INVALID),
    (CHARGED, BYPASSED, Verdict.INVALID),
    (UNCLEAR, CHARGED, Verdict.INVALID),
    (BYPASSED, UNCLEAR, Verdict.INVALID),
    (BROKEN_BYPASS, CHARGED, Verdict.INVALID),
    (BYPASSED, BROKEN, Verdict.INVALID),
    (SKIPPED, CHARGED, Verdict.SKIP),
    (BYPASSED, SKIPPED, Verdict.SKIP),
    (LOST, CHARGED, Verdict.INFRA),
    (SKIPPED, LOST, Verdict.INFRA),
    (BROKEN, LOST, Verdict.INFRA),
]


@pytest.mark.parametrize(("base", "patched", "expected"), PAIRS)
def test_pairs(base: Outcome, patched: Outcome, expected: Verdict) -> None:
    assert verdict.judge_pair(base, patched).verdict is expected


def test_only_a_bypass_on_the_base_and_a_charge_on_the_patched_kernel_pass() -> None:
    everything: tuple[Outcome, ...] = (CHARGED, BYPASSED, UNCLEAR, BROKEN, BROKEN_BYPASS, SKIPPED, LOST)
    passing = [pair for pair in itertools.product(everything, repeat=2) if verdict.judge_pair(*pair).verdict is Verdict.PASS]
    assert passing == [(BYPASSED, CHARGED)]


def test_no_kernel_passes_against_itself() -> None:
    for outcome in (CHARGED, BYPASSED, UNCLEAR, BROKEN, SKIPPED, LOST):
        assert verdict.judge_pair(outcome, outcome).verdict is not Verdict.PASS


def test_a_broken_control_is_named_with_its_side() -> None:
    assert verdict.judge_pair(BROKEN_BYPASS, CHARGED).reason == "base: control c: expected x, got y"


@pytest.mark.parametrize(
    ("outcome", "expected", "judged"),
    [
        (CHARGED, Gap.CLOSED, Verdict.PASS),
        (CHARGED, Gap.OPEN, Verdict.FAIL),
        (BYPASSED, Gap.CLOSED, Verdict.FAIL),
        (BYPASSED, Gap.OPEN, Verdict.PASS),
        (UNCLEAR, Gap.CLOSED, Verdict.INVALID),
        (BROKEN, Gap.CLOSED, Verdict.INVALID),
        (SKIPPED, Gap.CLOSED, Verdict.SKIP),
        (LOST, Gap.CLOSED, Verdict.INFRA),
    ],
)
def test_single_kernels(outcome: Outcome, expected: Gap, judged: Verdict) -> None:
    assert verdict.judge_single(outcome, expected).verdict is judged


@pytest.mark.parametrize(
    ("share", "claim"),
    [
        (1.01, Gap.CLOSED),
        (0.95, Gap.CLOSED),
        (0.9499, Gap.UNCLEAR),
        (0.0201, Gap.UNCLEAR),
        (0.02, Gap.OPEN),
        (0.0, Gap.OPEN),
    ],
)
def test_thresholds(share: float, claim: Gap) -> None:
    assert verdict.of_share(share) is claim


def test_a_run_is_as_bad_as_its_worst_scenario() -> None:
    v = Verdict
    assert verdict.overall((v.PASS, v.SKIP)) is v.PASS
    assert verdict.overall((v.SKIP, v.SKIP)) is v.SKIP
    assert verdict.overall((v.PASS, v.INVALID)) is v.INVALID
    assert verdict.overall((v.INVALID, v.INFRA)) is v.INFRA
    assert verdict.overall((v.INFRA, v.FAIL, v.PASS)) is v.FAIL
    assert [verdict.EXIT_CODES[x] for x in (v.PASS, v.FAIL, v.INFRA, v.INVALID, v.SKIP)] == [0, 1, 2, 3, 4]
