import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from testbed.errors import UsageError
from testbed.guest.channels.kernel_log import Finding, Kind
from testbed.host import paths
from testbed.report import formats, live, results, tables
from testbed.report.markdown import markdown
from testbed.report.schema import Spread
from testbed.scenarios.runner import Result
from testbed.scenarios.verdict import Balance, Evidence, Judgement, Verdict, judge_pair
from testbed.text import parse_printable_json
from tests.support.run_results import KERNELS, document, lost, passed


def shown(of: tuple[Result, ...], width: int = 140) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.results_table(of, KERNELS))
    tables.show_losses(of, console)
    return console.export_text()


def test_results_are_json_with_units_and_sources(tmp_path: Path) -> None:
    both = (passed(tmp_path), lost(tmp_path))
    formats.write(document(tmp_path, *both), tmp_path)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["run"] == tmp_path.name and read["verdict"] == "INFRA" and set(read["kernels"]) == {"base", "patched"}
    gate, oom = read["scenarios"]
    assert gate["verdict"] == "PASS" and gate["base"]["claim"] == "open"
    assert gate["patched"]["measures"] == {
        "disk reads": {"value": 33554432, "unit": "bytes", "source": "query-blockstats"}
    }
    assert gate["patched"]["console"] == [
        {"kind": "oom", "seconds": 1.5, "text": "dd invoked oom-killer", "expected": True}
    ]
    assert oom["verdict"] == "INFRA" and oom["base"]["claim"] is None and oom["base"]["measures"] == {}


def test_attempts_are_one_case_with_its_gravest_verdict_its_medians_and_its_pass_rate(tmp_path: Path) -> None:
    good, bad = passed(tmp_path), passed(tmp_path)
    bad = replace(bad, attempt=2, sides={**bad.sides, "patched": bad.sides["base"]})
    bad = replace(bad, judgement=judge_pair(bad.sides["base"].outcome, bad.sides["patched"].outcome))
    (gate,) = document(tmp_path, good, bad).scenarios
    assert gate.verdict == "FAIL" and gate.pass_rate == 0.5 and gate.attempts is not None and len(gate.attempts) == 2
    assert gate.spread is not None
    assert gate.spread["base"]["disk reads"] == Spread(min=33554432, median=33554432, max=33554432)
    assert "1 of 2" in shown((good, bad))


def test_what_was_not_accounted_for_and_what_the_kernel_said_are_shown(tmp_path: Path) -> None:
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


def test_on_a_narrow_terminal_each_case_is_a_paragraph_that_says_the_same(tmp_path: Path) -> None:
    both = (passed(tmp_path), lost(tmp_path))
    text = shown(both, width=80)
    assert all(len(line) <= 80 or line.startswith("oom-tmpfs: ") for line in text.splitlines())
    for words in ("PASS gate", "INFRA oom-tmpfs", "5.10-cloud", "disk reads: ", "controls: 1 of 1 hold", "  reason"):
        assert words in text, text


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert len({paths.new_run_folder(tmp_path) for _ in range(20)}) == 20


def test_the_table_shows_measures_verdict_and_controls(tmp_path: Path) -> None:
    text = shown((passed(tmp_path),))
    assert "disk reads: 32MiB" in text and "PASS" in text and "controls: 1 of 1 hold" in text and "5.10-cloud" in text
    assert "timeline: never began" in text


def test_what_a_guest_says_is_text_and_not_markup(tmp_path: Path) -> None:
    text = shown((lost(tmp_path),))
    assert "[red]on[/red]" in text and "INFRA" in text


def test_without_a_terminal_progress_is_plain_lines() -> None:
    console = Console(record=True, file=io.StringIO(), force_terminal=False, width=80)
    with live.progress(console) as progress, progress.task("image [x]") as task:
        task.update(fraction=0.5, detail="half [y]")
        task.update(fraction=0.5, detail="half [y]")
        progress.note("a note")
    lines = console.export_text().splitlines()
    assert lines[:3] == ["image [x]: started", "image [x]:  50% half [y]", "a note"] and lines[3].startswith(
        "image [x]: done in"
    )


def test_on_a_terminal_progress_moves_and_goes() -> None:
    console = Console(record=True, file=io.StringIO(), force_terminal=True, width=80)
    with live.progress(console) as progress, progress.task("image") as task:
        task.update(fraction=0.5, detail="half")
    assert "image" in console.export_text()


def test_a_run_is_read_again_as_markdown_that_nobody_breaks_out_of(tmp_path: Path) -> None:
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


def test_kernels_judged_alone_have_a_verdict_each_and_differences_are_told(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("said", [None, "{", "[]", '{"version": 2}'])
def test_a_run_without_results_is_said(said: str | None, tmp_path: Path) -> None:
    if said is not None:
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "results.json").write_text(said)
    with pytest.raises(
        UsageError,
        match="run 'r': " if said is None else r"results\.json: expected (JSON|the results of a run, version 1): ",
    ):
        results.read("r", tmp_path)
    if said is None:
        with pytest.raises(UsageError, match="there is none"):
            results.read("last", tmp_path)
