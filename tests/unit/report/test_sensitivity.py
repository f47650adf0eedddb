"""The table of which scenario notices which ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbed.report import sensitivity
from testbed.report.partial import Partial
from testbed.report.schema import Case, Control, Document, Line, Side, VerdictName
from testbed.report.sensitivity import UNCHANGED
from tests.support.run_results import document as make_document
from tests.support.run_results import passed

FOLDER = Path("/runs/20260101T000000Z-abcd")


def side(verdict: VerdictName, *splats: tuple[str, bool], claim: Any = "unclear", control: bool = True) -> Side:
    return Side(
        took_s=1.0,
        guest_ready_after_s=1.0,
        evidence="guests/g",
        reason="so",
        measures={},
        balances=[],
        verdict=verdict,
        judgement="so",
        claim=claim,
        controls=[Control(name="c", expected="x", got="x", holds=holds) for holds in (True, control)],
        console=[Line(kind=kind, seconds=1.0, text="x", expected=known) for kind, known in splats],
    )


def document(**cases: dict[str, Side]) -> Document:
    (example,) = (whole := make_document(FOLDER, passed(FOLDER))).scenarios
    kernels = dict.fromkeys(next(iter(cases.values()), {}), whole.kernels["base"])
    common = dict(example) | {"verdict": "FAIL"}
    made = []
    for name, sides in cases.items():
        fields: dict[str, Any] = common | {"name": name.replace("_", "-").replace("--", "/")} | sides
        made.append(Case.model_construct(**fields))
    return whole.model_copy(update={"kernels": kernels, "scenarios": made})


def test_the_word_for_a_case_follows_from_its_verdict_and_kernel_log() -> None:
    found = sensitivity.table(
        (
            document(
                read={
                    UNCHANGED: side("PASS", ("oom", False), ("warning", True)),
                    "no-io-charge": side("FAIL"),
                    "root-worker": side("PASS"),
                    "nesting-lost": side("PASS", ("warning", False)),
                    "shmem-uncharged": side("INVALID", control=False),
                    "active-memcg-ignored": side("INVALID", claim="open"),
                    "no-memory-charge": side("INVALID"),
                    "idle-at-once": side("INFRA", ("oom", False), ("oops", False)),
                    "worker-leaked": side("INFRA", ("oops", True)),
                    "timer-outlives": side("INFRA", ("KASAN", False)),
                    "idle-for-ever": side("SKIP"),
                }
            ),
        )
    )
    assert found == {
        "read": {
            "no-io-charge": "noticed",
            "root-worker": "-",
            "nesting-lost": "in the log",
            "shmem-uncharged": "control",
            "active-memcg-ignored": "control",
            "no-memory-charge": "in part",
            "idle-at-once": "guest lost",
            "worker-leaked": "",
            "timer-outlives": "in the log",
            "idle-for-ever": "",
        }
    }


def test_a_case_that_fails_on_the_unchanged_kernel_has_no_word() -> None:
    found = sensitivity.table((document(read={UNCHANGED: side("FAIL"), "no-io-charge": side("FAIL")}),))
    assert found == {"read": {"no-io-charge": ""}}
    assert sensitivity.table_complaints(found) == (
        "patch 4: no scenario notices no-io-charge",
        "read: it has no result, or none on the unchanged kernel",
    )


def test_a_guest_lost_without_a_panic_is_no_evidence() -> None:
    found = sensitivity.table(
        (document(read={UNCHANGED: side("PASS"), "no-io-charge": side("INFRA"), "root-worker": side("INFRA")}),)
    )
    assert found == {"read": {"no-io-charge": "", "root-worker": ""}}
    assert sensitivity.table_complaints(found) == (
        "patch 1: no scenario notices root-worker",
        "patch 4: no scenario notices no-io-charge",
        "read: it has no result, or none on the unchanged kernel",
    )
    ended = sensitivity.table(
        (document(read={UNCHANGED: side("PASS"), "no-io-charge": side("INFRA", ("panic", False))}),)
    )
    assert ended == {"read": {"no-io-charge": "guest lost"}} and sensitivity.table_complaints(ended) == ()
    assert "`guest lost`: a panic or an oops ended the guest" in sensitivity.markdown(ended, "")


def test_several_runs_make_one_table() -> None:
    found = sensitivity.table(
        (
            document(read={UNCHANGED: side("PASS")}, nested={UNCHANGED: side("PASS")}),
            document(read={"no-io-charge": side("FAIL")}, nested={"no-io-charge": side("PASS")}),
            document(read={"root-worker": side("PASS")}, nested={"root-worker": side("PASS")}),
            # Of another configuration, on which it says nothing.
            document(read={UNCHANGED: side("FAIL"), "no-io-charge": side("PASS"), "nesting-lost": side("FAIL")}),
        )
    )
    assert found["read"] == {"no-io-charge": "noticed", "root-worker": "-", "nesting-lost": ""}
    assert sensitivity.table_complaints(found) == (
        "patch 1: no scenario notices root-worker",
        "patch 2: no scenario notices nesting-lost",
        "nested: it notices none of 3",
    )


def test_the_markdown_shows_which_case_noticed_which_ablation() -> None:
    found = sensitivity.table(
        (document(read={UNCHANGED: side("PASS"), "no-io-charge": side("FAIL"), "root-worker": side("PASS")}),)
    )
    text = sensitivity.markdown(found, "    ./tb sensitivity read")
    assert (
        "| no-io-charge | 4 | disk I/O is charged to the issuer only where it is direct, as before the series | read |"
        in text
    )
    assert "| case | patches | root-worker | no-io-charge |" in text and "| read | 4 | - | noticed |" in text
    assert "- patch 1: no scenario notices root-worker" in text


def test_a_run_that_ended_early_is_a_complaint() -> None:
    found = {"read": {"no-io-charge": "noticed", "no-memory-charge": "noticed"}}
    whole = document(read={})
    end = Partial(ended=3, wanted=12, at_most=False, what="cases", why="interrupted by SIGTERM")
    ended = whole.model_copy(update={"run": "r2", "partial": end})
    said = "run r2 is partial: 3 of 12 cases ended; interrupted by SIGTERM"
    assert sensitivity.table_complaints(found, (whole, ended))[0] == said
    assert f"- {said}" in sensitivity.markdown(found, "", (whole, ended)) and "partial" not in sensitivity.markdown(
        found, "", (whole,)
    )


def test_the_markdown_names_patches_without_ablation() -> None:
    some = (document(gone={UNCHANGED: side("PASS"), "no-io-charge": side("FAIL")}),)
    text = sensitivity.markdown(sensitivity.table(some), "head")
    assert (
        "| gone |  | noticed |" in text
        and "Nothing is known of patch 1, 2, 3, of which nothing was taken away." in text
    )
    none = (document(read={UNCHANGED: side("PASS")}), document())
    for documents in (none, none[1:]):
        assert "nothing was taken away: no result is of an ablation" in sensitivity.table_complaints(
            sensitivity.table(documents)
        )
