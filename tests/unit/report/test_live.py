"""Progress of a run: bars, plain lines, and JSON events."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from testbed.report import live
from testbed.scenarios.verdict import Verdict


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


def test_on_a_terminal_progress_is_shown_as_bars() -> None:
    console = Console(record=True, file=io.StringIO(), force_terminal=True, width=80)
    with live.progress(console) as progress, progress.task("image") as task:
        task.update(fraction=0.5, detail="half")
    assert "image" in console.export_text()


def watched(console: Console, *, as_json: bool = False, quiet: bool = False) -> None:
    with (
        live.progress(console, as_json=as_json, quiet=quiet) as progress,
        live.RunDisplay(progress, console, 2) as watch,
    ):
        progress.note("a note")
        watch.step("gate", "base", "waiting for SSH")
        watch.step("gate", "base", "running")
        watch.step("gate", "base", "done")
        watch.result("gate", 1, Verdict.FAIL, "because [x]\nand more")
        watch.end(Verdict.FAIL, Path("/runs/a"), 1)


def test_with_json_each_event_is_an_object_on_a_line() -> None:
    file = io.StringIO()
    watched(Console(file=file, width=20), as_json=True)
    found = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [one["event"] for one in found] == ["note", "stage", "stage", "stage", "result", "end"]
    assert all(one["monotonic_s"] > 0 and one["time_s"] > 0 for one in found)
    assert {key: found[1][key] for key in ("guest", "case", "kernel", "stage")} == {
        **{"guest": "gate on base", "case": "gate", "kernel": "base", "stage": "waiting for SSH"}
    }
    assert found[4]["verdict"] == "FAIL" and found[4]["reason"] == "because [x]\nand more"
    assert (found[5]["verdict"], found[5]["folder"], found[5]["exit_code"]) == ("FAIL", "/runs/a", 1)


def test_without_a_terminal_there_are_plain_lines_and_none_with_quiet() -> None:
    file = io.StringIO()
    watched(Console(file=file, width=20))
    lines = file.getvalue().splitlines()
    assert lines[:4] == ["a note", "gate on base: started", "gate on base: waiting for SSH", "gate on base: running"]
    assert lines[-1] == "FAIL    gate: because [x]"
    silent = io.StringIO()
    watched(Console(file=silent, width=20), quiet=True)
    assert silent.getvalue() == ""


def test_on_a_terminal_verdicts_have_colours_and_cases_are_counted() -> None:
    file = io.StringIO()
    watched(Console(file=file, width=100, force_terminal=True, color_system="standard"))
    text = file.getvalue()
    assert "\x1b[1;31mFAIL" in text and "cases" in text and "gate: because" in text


def test_a_display_can_be_left_before_all_results_have_come() -> None:
    file = io.StringIO()
    with live.progress(Console(file=file)) as progress, live.RunDisplay(progress, Console(file=file), 3) as watch:
        watch.result("gate", 1, Verdict.PASS, "because")
