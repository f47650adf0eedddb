"""Results of a run as Markdown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from testbed.report import formats, results
from testbed.report.markdown import markdown
from testbed.scenarios.verdict import Balance, Evidence, Judgement, Verdict
from testbed.text import parse_printable_json
from tests.support.run_results import KERNELS, document, lost, passed


def test_markdown_of_a_run_escapes_texts_of_guests(tmp_path: Path) -> None:
    folder = tmp_path / "20260101T000000Z-0000"
    folder.mkdir()
    evil = passed(folder)
    evil = replace(evil, judgement=replace(evil.judgement, reason="a | b <script>\nmore"))
    made = document(folder, evil, lost(folder)).model_copy(update={"command": ["testbed", "compare", "a b"]})
    formats.write(made, folder)
    text = markdown(results.read("last", tmp_path))
    assert (
        "    ./tb compare 'a b'" in text
        and "| gate | disk reads" in text
        and "a \\| b &lt;script>" in text
        and "more" not in text
    )
    # What could steer a terminal is left out of what is read.
    read = results.read(str(folder), tmp_path)
    assert read == results.read(folder.name, tmp_path)
    assert read.as_json() == parse_printable_json(results.text(made).encode())


def test_markdown_shows_verdicts_of_kernels_judged_alone_and_accounting_differences(tmp_path: Path) -> None:
    result = passed(tmp_path)
    outcome = result.sides["base"].outcome
    assert isinstance(outcome, Evidence)
    outcome = replace(outcome, balances=(Balance(what="rbytes", accounted=90, real=100),))
    result = replace(
        result,
        sides={**result.sides, "base": replace(result.sides["base"], outcome=outcome)},
        by_kernel={side: Judgement(verdict=Verdict.PASS, reason=f"as {side}") for side in KERNELS},
    )
    text = markdown(document(tmp_path, result))
    assert "| gate | **PASS** as base | **PASS** as patched |" in text
    assert "1 differ by more than 1 %: gate on base: rbytes, -10 bytes (10.00%)" in text
