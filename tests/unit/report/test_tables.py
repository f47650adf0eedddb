"""Results as tables on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from testbed.guest.channels.kernel_log import Finding, Kind
from testbed.report import tables
from testbed.scenarios.runner import Result
from testbed.scenarios.verdict import Balance, Evidence, Judgement, Verdict
from tests.support.run_results import KERNELS, lost, passed


def shown(of: tuple[Result, ...], width: int = 140) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.results_table(of, KERNELS))
    tables.show_losses(of, console)
    return console.export_text()


def test_the_table_shows_measures_verdict_and_controls(tmp_path: Path) -> None:
    text = shown((passed(tmp_path),))
    assert "disk reads: 32MiB" in text and "PASS" in text and "controls: 1 of 1 hold" in text and "5.10-cloud" in text
    assert "timeline: never began" in text


def test_the_table_shows_accounting_differences_and_kernel_warnings(tmp_path: Path) -> None:
    result = passed(tmp_path)
    outcome = result.sides["base"].outcome
    assert isinstance(outcome, Evidence)
    balance = Balance(what="rbytes of disk data", accounted=90, real=100)
    warned = Finding(kind=Kind.WARNING, seconds=1.0, text="WARNING: CPU: 0")
    side = replace(result.sides["base"], outcome=replace(outcome, balances=(balance,)), findings=(warned,))
    text = shown((replace(result, sides={**result.sides, "base": side}),))
    assert "finding: rbytes of disk" in text and "(10.0%)" in text and "kernel log: warning" in text


def test_the_matrix_has_a_column_for_each_kernel(tmp_path: Path) -> None:
    judgements = {
        "base": Judgement(verdict=Verdict.PASS, reason="open"),
        "patched": Judgement(verdict=Verdict.FAIL, reason="open too"),
    }
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables.matrix_table((replace(passed(tmp_path), by_kernel=judgements),), KERNELS))
    text = console.export_text()
    assert "PASS" in text and "FAIL" in text and "open too" in text and "5.10-cloud" in text


def test_on_a_narrow_terminal_each_case_is_a_paragraph_with_the_same_content(tmp_path: Path) -> None:
    both = (passed(tmp_path), lost(tmp_path))
    text = shown(both, width=80)
    assert all(len(line) <= 80 or line.startswith("oom-tmpfs: ") for line in text.splitlines())
    for words in ("PASS gate", "INFRA oom-tmpfs", "5.10-cloud", "disk reads: ", "controls: 1 of 1 hold", "  reason"):
        assert words in text, text


def test_text_of_a_guest_is_no_markup(tmp_path: Path) -> None:
    text = shown((lost(tmp_path),))
    assert "[red]on[/red]" in text and "INFRA" in text
