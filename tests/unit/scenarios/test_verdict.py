import itertools

import pytest

from testbed.scenarios import verdict
from testbed.scenarios.verdict import Claim, Control, Evidence, Gap, Lost, Outcome, Part, Skipped, Verdict


def evidence(claim: Gap, *, control_holds: bool = True) -> Evidence:
    control = Control(name="c", expected="x", got="y", holds=control_holds)
    return Evidence(claim=claim, reason="so", measures=(), controls=(control,))


CHARGED, BYPASSED, UNCLEAR = (evidence(claim) for claim in (Gap.CLOSED, Gap.OPEN, Gap.UNCLEAR))
PARTIAL, EXCESS = (evidence(claim) for claim in (Gap.PARTIAL, Gap.EXCESS))
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
    (BYPASSED, PARTIAL, Verdict.FAIL),
    (BYPASSED, EXCESS, Verdict.FAIL),
    (PARTIAL, CHARGED, Verdict.INVALID),
    (EXCESS, CHARGED, Verdict.INVALID),
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
    everything: tuple[Outcome, ...] = (
        CHARGED,
        BYPASSED,
        PARTIAL,
        EXCESS,
        UNCLEAR,
        BROKEN,
        BROKEN_BYPASS,
        SKIPPED,
        LOST,
    )
    passing = [
        pair for pair in itertools.product(everything, repeat=2) if verdict.judge_pair(*pair).verdict is Verdict.PASS
    ]
    assert passing == [(BYPASSED, CHARGED)]


def test_no_kernel_passes_against_itself() -> None:
    for outcome in (CHARGED, BYPASSED, PARTIAL, EXCESS, UNCLEAR, BROKEN, SKIPPED, LOST):
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
        (PARTIAL, Gap.CLOSED, Verdict.FAIL),
        (PARTIAL, Gap.OPEN, Verdict.FAIL),
        (EXCESS, Gap.CLOSED, Verdict.FAIL),
        (EXCESS, Gap.OPEN, Verdict.FAIL),
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
        (1.05, Gap.CLOSED),
        (1.0501, Gap.EXCESS),
        (2.0, Gap.EXCESS),
        (100.0, Gap.EXCESS),
        (float(1 << 64), Gap.EXCESS),
        (float("inf"), Gap.UNCLEAR),
        (float("nan"), Gap.UNCLEAR),
        (-0.0001, Gap.UNCLEAR),
    ],
)
def test_thresholds(share: float, claim: Gap) -> None:
    assert verdict.share_gap(share * 10_000, 10_000, least=10_000) is claim


@pytest.mark.parametrize(("charged", "total"), [(0, 9_999), (9_999, 9_999), (12_000, 12), (0, 0), (0, -1)])
def test_a_share_of_almost_nothing_is_inconclusive(charged: int, total: int) -> None:
    assert verdict.share_gap(charged, total, least=10_000) is Gap.UNCLEAR
    assert verdict.share_of("x", charged, total, least=10_000).gap is Gap.UNCLEAR
    assert verdict.share_gap(0, 0, least=0) is Gap.UNCLEAR


def test_a_run_is_as_bad_as_its_worst_scenario() -> None:
    v = Verdict
    assert verdict.overall_verdict((v.PASS, v.SKIP)) is v.PASS
    assert verdict.overall_verdict((v.SKIP, v.SKIP)) is v.SKIP
    assert verdict.overall_verdict((v.PASS, v.INVALID)) is v.INVALID
    assert verdict.overall_verdict((v.INVALID, v.INFRA)) is v.INFRA
    assert verdict.overall_verdict((v.INFRA, v.FAIL, v.PASS)) is v.FAIL
    assert [verdict.EXIT_CODES[x] for x in (v.PASS, v.FAIL, v.INFRA, v.INVALID, v.SKIP)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("owned", "resident", "asked", "claim"),
    [
        (950, 950, 1000, Gap.CLOSED),
        (949, 949, 1000, Gap.UNCLEAR),  # too little of the file is in memory to say anything
        (199, 9500, 10_000, Gap.OPEN),
        (20, 950, 1000, Gap.OPEN),  # of what was asked for, and not of what is in memory
        (20, 1000, 1000, Gap.OPEN),
        (21, 1000, 1000, Gap.UNCLEAR),
        (949, 1000, 1000, Gap.UNCLEAR),
        (950, 1000, 1000, Gap.CLOSED),
        (1050, 1000, 1000, Gap.CLOSED),
        (1051, 1000, 1000, Gap.EXCESS),  # it pays for pages that are not the file's
        (3000, 1000, 1000, Gap.EXCESS),
        (-1, 1000, 1000, Gap.UNCLEAR),
        (1900, 2000, 1000, Gap.CLOSED),  # readahead
        (1899, 2000, 1000, Gap.UNCLEAR),
        (41, 2000, 1000, Gap.UNCLEAR),
    ],
)
def test_page_cache_is_judged_by_resident_pages(owned: int, resident: int, asked: int, claim: Gap) -> None:
    assert verdict.pages_gap(owned, resident, asked) is claim


def part(gap: Gap, what: str = "x", times: float | None = None) -> Part:
    return Part(what=what, gap=gap, times=times)


def test_parts_of_a_claim_that_agree_are_the_claim() -> None:
    for gap in (Gap.OPEN, Gap.CLOSED):
        assert verdict.join_parts(part(gap)) == verdict.join_parts(part(gap), part(gap)) == Claim(gap=gap, note="")


def test_half_a_loss_names_the_half_that_is_missing() -> None:
    half = verdict.join_parts(part(Gap.CLOSED, "the disk's bytes"), part(Gap.OPEN, "the page cache"))
    assert half == Claim(gap=Gap.PARTIAL, note="; charged: the disk's bytes; not charged: the page cache")
    patched = Evidence(claim=half.gap, reason=f"read{half.note}", measures=(), controls=())
    judged = verdict.judge_pair(BYPASSED, patched)
    assert judged.reason == (
        "the patched kernel closes the gap only in part: read; charged: the disk's bytes; not charged: the page cache"
    )


def test_an_excess_counts_even_beside_what_is_unclear_and_what_is_unclear_beside_all_else() -> None:
    twice = verdict.join_parts(part(Gap.EXCESS, "the disk's bytes", 2.0), part(Gap.CLOSED), part(Gap.UNCLEAR))
    assert twice == Claim(gap=Gap.EXCESS, note="; charged more than there was: the disk's bytes 2.0 times")
    assert verdict.join_parts(part(Gap.UNCLEAR), part(Gap.OPEN, "y")) == Claim(gap=Gap.UNCLEAR, note="; unclear: x")
    assert verdict.join_parts(part(Gap.UNCLEAR)).note == ""
    assert verdict.join_parts().gap is Gap.UNCLEAR


def test_a_kernel_that_charges_twice_fails_though_its_controls_are_charged_twice_as_well() -> None:
    control = Control(name="direct-I/O loop", expected="95 to 105 %", got="200 %", holds=False, excess=True)
    twice = Evidence(claim=Gap.EXCESS, reason="2.0 times", measures=(), controls=(control,))
    assert verdict.judge_pair(BYPASSED, twice).reason == "the patched kernel charges more than there was: 2.0 times"
    # With another claim, or with a control that fails for another reason, the evidence is invalid.
    for claim, excess in ((Gap.CLOSED, True), (Gap.EXCESS, False)):
        broken = Evidence(
            claim=claim,
            reason="",
            measures=(),
            controls=(Control(name="c", expected="", got="", holds=False, excess=excess),),
        )
        assert verdict.judge_pair(BYPASSED, broken).verdict is Verdict.INVALID


@pytest.mark.parametrize("value", [CHARGED, SKIPPED, LOST, CHARGED.controls[0], verdict.judge_pair(BYPASSED, CHARGED)])
def test_judging_does_not_change_the_evidence(value: object) -> None:
    name = next(iter(type(value).__dataclass_fields__))  # type: ignore[attr-defined]  # each is a dataclass
    with pytest.raises(AttributeError):
        setattr(value, name, "other")


@pytest.mark.parametrize(
    ("accounted", "real", "share", "finding"),
    [
        (1000, 1000, 0.0, False),
        (990, 1000, 0.01, False),
        (1000, 990, 0.01, False),
        (989, 1000, 0.011, True),
        (0, 0, 0.0, False),
        (0, 1, 1.0, True),
    ],
)
def test_bytes_that_are_counted_twice_agree_within_one_percent(
    accounted: int, real: int, share: float, finding: bool
) -> None:
    balance = verdict.Balance(what="bytes", accounted=accounted, real=real)
    assert balance.share == pytest.approx(share) and balance.is_finding is finding
