"""The list of earlier runs, and which of them are removed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from testbed.errors import HostError, UsageError
from testbed.host import paths
from testbed.report import result_reader, results, runs
from testbed.report.bugs import files
from testbed.report.runs import Run
from tests.support.command import testbed
from tests.support.run_results import document, passed, plain

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def run(days: int, size: int = 100, *, going_on: bool = False) -> Run:
    at = NOW - timedelta(days=days)
    folder = Path(f"/runs/{at:%Y%m%dT%H%M%SZ}-{days:04x}")
    return Run(folder=folder, at=at, verdict="PASS", command=("compare",), cases=1, size_bytes=size, going_on=going_on)


def unused(of: tuple[Run, ...], *, days: float | None = None, larger: int | None = None, keep: int = 0) -> list[int]:
    seconds = None if days is None else days * 86400
    chosen = runs.select_unused(of, NOW, older_than_s=seconds, larger_than_bytes=larger, keep=keep)
    return [(NOW - one.at).days for one in chosen]


def test_the_oldest_runs_are_selected_but_none_that_goes_on_or_is_kept() -> None:
    of = tuple(run(days, going_on=days == 40) for days in (1, 10, 20, 30, 40))
    assert unused(of, days=15) == [30, 20]
    assert unused(of, days=15, keep=3) == [30]
    assert unused(of, larger=250) == [30, 20, 10]
    assert unused(of, larger=500) == []
    assert unused(of, days=25, larger=350) == [30, 20]
    assert unused(of, days=0, keep=1) == [30, 20, 10]


def made(state: Path, name: str, text: str | None = None) -> Path:
    folder = state / "runs" / name
    folder.mkdir(parents=True)
    (folder / "log").write_text("x" * 1000)
    if text is not None:
        (folder / "results.json").write_text(text)
    return folder


@pytest.mark.slow
def test_runs_are_listed_and_pruned_and_nothing_else_is_touched(tmp_path: Path) -> None:
    state = tmp_path / "state"
    old = made(state, "20200101T000000Z-0001", results.text(document(tmp_path, passed(tmp_path))))
    broken = made(state, "20200102T000000Z-0002", "{")
    going = made(state, "20200103T000000Z-0003")
    kept = made(state, "somebody-elses")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    link = state / "runs" / "20200104T000000Z-0004"
    link.symlink_to(outside)
    with runs.running(going, ["tb", "compare", "word " * 60]):
        # A program that reads the list gets one line for each run.
        rows = testbed(tmp_path, "runs", COLUMNS="").stdout.splitlines()
        assert len(rows) == 4 and rows[1].rstrip().endswith("word word")
        listed = testbed(tmp_path, "runs", "--json")
        found = {one["run"]: one for one in json.loads(listed.stdout)["runs"]}
        assert set(found) == {old.name, broken.name, going.name}
        assert (
            found[old.name]["verdict"] == "PASS"
            and found[old.name]["cases"] == 1
            and found[old.name]["size_bytes"] > 1000
        )
        assert found[broken.name]["verdict"] is None and found[going.name]["going_on"] is True
        assert "going on" in testbed(tmp_path, "runs").stdout
        dry = testbed(tmp_path, "runs", "--prune", "--older-than", "30d", "--dry-run", "--json")
        assert [one["run"] for one in json.loads(dry.stdout)["would_be_removed"]] == [old.name, broken.name]
        assert old.exists()
        done = testbed(tmp_path, "runs", "--prune", "--older-than", "30d", "--json")
        assert [one["run"] for one in json.loads(done.stdout)["removed"]] == [
            old.name,
            broken.name,
        ] and done.returncode == 0
        assert not old.exists() and not broken.exists()
    for there in (going, kept, link, outside / "file"):
        assert os.path.lexists(there)
    assert (
        testbed(tmp_path, "runs", "--prune", "--keep", "0", "--older-than", "1s").returncode == 0 and not going.exists()
    )


def test_a_killed_run_does_not_go_on(tmp_path: Path) -> None:
    folder = made(tmp_path, "20200101T000000Z-0001")
    (folder / ".running").touch()
    (found,) = runs.list_runs(tmp_path / "runs", result_reader.summarize)
    assert not found.going_on
    assert runs.list_runs(tmp_path / "runs", result_reader.summarize, [folder / "g0"])[0].going_on


def test_a_folder_outside_of_the_runs_is_not_removed(tmp_path: Path) -> None:
    folder = made(tmp_path, "20200101T000000Z-0001")
    (found,) = runs.list_runs(tmp_path / "runs", result_reader.summarize)
    for wrong in (replace(found, folder=tmp_path), replace(found, folder=tmp_path / "runs" / ".." / "runs")):
        with pytest.raises(HostError, match="it is left alone"):
            runs.remove_run(wrong, tmp_path / "runs")
    with runs.running(folder, ["tb"]), pytest.raises(HostError, match="is going on"):
        runs.remove_run(found, tmp_path / "runs")
    assert folder.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report", "nope"), "run 'nope': "),
        (("report", "a", "b"), "expected one run, or --diff and two, got a, b"),
        (("report", "--diff", "a"), "report --diff: expected two runs, got a"),
        (("report", "--format", "pdf"), "--format pdf: expected one of markdown, html, junit, ktap, json"),
        (("runs", "--keep", "3"), "go with --prune"),
        (("runs", "--prune"), "expected --older-than, --larger-than or --keep"),
        (("runs", "--prune", "--older-than", "long"), "--older-than long: expected an age such as 30d"),
        (("runs", "--prune", "--larger-than", "big"), "--larger-than big: expected a size such as 2G, got 'big'"),
        (("compare", "--sample", "often"), "--sample often: expected a duration such as 5ms, got 'often', or off"),
        (("compare", "--sample", "1ms"), "--sample 1ms: expected at least 50ms, or off"),
    ],
)
def test_wrong_options_are_errors(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = testbed(tmp_path, *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.slow
def test_every_format_is_printed_and_the_last_line_is_the_same(tmp_path: Path) -> None:
    found = plain(document(tmp_path, passed(tmp_path)))
    folder = made(tmp_path / "state", "20200101T000000Z-0001", json.dumps(found))
    for kind, begins in (
        ("markdown", "# Base"),
        ("html", "<!DOCTYPE html>"),
        ("junit", "<?xml"),
        ("ktap", "KTAP version 1"),
        ("json", "{"),
    ):
        done = testbed(tmp_path, "report", "last", "--format", kind)
        assert done.returncode == 0 and done.stdout.startswith(begins), done.stderr
        assert done.stderr.splitlines()[-1] == f"verdict: PASS {folder}"
    written = testbed(tmp_path, "report", folder.name, "-f", "html", "-o", str(tmp_path / "page.html"))
    assert written.stdout == "" and (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    shown = testbed(tmp_path, "report", folder.name, "--open", BROWSER="true")
    assert shown.returncode == 0 and (folder / "report.html").is_file()
    same = testbed(tmp_path, "report", "--diff", folder.name, "last", "--json")
    assert same.returncode == 3 and json.loads(same.stdout)["verdicts"] == []
    worst = found | {"verdict": "FAIL", "scenarios": [found["scenarios"][0] | {"verdict": "FAIL"}]}
    worse = made(tmp_path / "state", "20200102T000000Z-0002", json.dumps(worst))
    # `report` ends with the exit code of the run.
    failed_one = testbed(tmp_path, "report", worse.name)
    assert failed_one.returncode == 1 and failed_one.stderr.splitlines()[-1] == f"verdict: FAIL {worse}"
    other = testbed(tmp_path, "report", "--diff", folder.name, worse.name)
    assert other.returncode == 1 and "gate: PASS, then **FAIL**" in other.stdout


def test_only_empty_run_folders_are_removed(tmp_path: Path) -> None:
    assert runs.remove_empty_runs(tmp_path / "nowhere") == ()
    names = {name: tmp_path / f"20260601T00000{number}Z-0000" for number, name in enumerate(("empty", "full", "new"))}
    (tmp_path / "mine").mkdir()
    for name, folder in names.items():
        (folder / "g0").mkdir(parents=True)
        if name == "full":
            (folder / "g0" / "console.log").touch()
        with runs.running(folder, ["tb"]):
            pass
        if name != "new":
            os.utime(folder, (0, 0))
    os.utime(tmp_path / "mine", (0, 0))
    assert runs.remove_empty_runs(tmp_path) == (names["empty"],)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", names["full"].name, names["new"].name}


def test_a_run_without_results_has_its_command_and_is_kept_if_its_log_has_more(tmp_path: Path) -> None:
    folder = tmp_path / "20260601T000000Z-0000"
    folder.mkdir()
    with pytest.raises(ValueError, match="no"), runs.running(folder, ["/bin/tb", "compare", "a b"]):
        raise ValueError("no")
    os.utime(folder, (0, 0))
    assert runs.remove_empty_runs(tmp_path) == ()
    (found,) = runs.list_runs(tmp_path, result_reader.summarize)
    assert (found.command, found.verdict, found.cases) == (("compare", "a b"), "", 0)


@pytest.mark.parametrize("name", ["results.json", "reduce.json"])
def test_endlessly_nested_results_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "20260601T000000Z-0000"
    folder.mkdir()
    (folder / name).write_text("[" * 200_000)
    (found,) = runs.list_runs(tmp_path, result_reader.summarize)
    assert (found.verdict, found.cases) == ("", 0)
    with pytest.raises(UsageError, match="expected JSON: expected at most 64 levels"):
        files.read(folder)
        results.read(str(folder), tmp_path)


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert len({paths.new_run_folder(tmp_path) for _ in range(20)}) == 20
