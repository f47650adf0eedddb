"""Attacks by files in a run's folder: links, hard links and pipes."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.bugs import bundle
from testbed.errors import UsageError
from testbed.host import untrusted_files
from testbed.report import plots, runs
from testbed.report.bugs import files
from testbed.report.bugs.schema import Repro
from tests.support.bundles import BUG, RESULTS
from tests.support.run_folders import SECRET, bug_results, hit_results, run_verb, scenario_results
from tests.unit.guest.metrics.test_samples import disk, write


@pytest.mark.parametrize(("name", "of"), [("results.json", scenario_results), ("repro.json", bug_results)])
@pytest.mark.parametrize("link", ["report.html", ".report.html.unfinished", ".running", "junit.xml"])
def test_no_file_is_written_through_a_link_of_a_run_folder(
    folder: Path,
    precious: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    of: Callable[[Path], Any],
    link: str,
) -> None:
    found = of(folder)
    # Of a partial run the reader tests the lock.
    found["partial"] = {"ended": 1, "wanted": 2, "at_most": False, "what": "cases", "why": ""}
    found |= {"verdict": "INFRA"} if "verdict" in found else {"result": "unfinished"}
    (folder / name).write_text(json.dumps(found))
    (folder / link).symlink_to(precious)
    assert run_verb(monkeypatch, tmp_path, "report", str(folder), "--open") == 2
    assert precious.read_text() == SECRET
    assert (folder / "report.html").is_file() and not (folder / "report.html").is_symlink()


def test_output_replaces_a_link_in_the_run_folder_and_follows_one_elsewhere(
    folder: Path, precious: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "results.json").write_text(json.dumps(scenario_results(folder)))
    (folder / "notes.md").symlink_to(precious)
    assert run_verb(monkeypatch, tmp_path, "report", str(folder), "-o", str(folder / "notes.md")) == 0
    assert precious.read_text() == SECRET and (folder / "notes.md").read_text().startswith("# Base against patched")
    (tmp_path / "own.md").symlink_to(precious)
    assert run_verb(monkeypatch, tmp_path, "report", str(folder), "-o", str(tmp_path / "own.md")) == 0
    assert precious.read_text().startswith("# Base against patched")


@pytest.mark.parametrize("step", ["guests/g/console.log", "guests/g", "guests"])
def test_the_target_of_a_link_is_on_no_page_and_in_no_bundle(folder: Path, tmp_path: Path, step: str) -> None:
    outside = tmp_path / "outside"
    (outside / "g" / "g").mkdir(parents=True)
    for there in (outside / "console.log", outside / "g" / "console.log", outside / "g" / "g" / "console.log"):
        there.write_text(SECRET)
    link = folder / step
    if link.is_dir():
        (folder / "guests" / "g").rmdir()
        if step == "guests":
            link.rmdir()
    link.symlink_to(
        outside / "console.log" if step.endswith(".log") else outside / "g" if step.endswith("g") else outside
    )
    page = files.FORMATS["html"](Repro.model_validate(hit_results(folder)), folder)
    assert SECRET not in page and "console.log" not in page
    (folder / "bug.yaml").write_text(BUG)
    (folder / "repro.json").write_text(json.dumps(RESULTS))
    bundle.pack(folder, tmp_path / "a.tar", {})
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == ["manifest.json", "bug.yaml", "repro.json"]


@pytest.mark.parametrize("name", ["bug.yaml", "repro.json"])
def test_a_bundle_of_links_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "bug.yaml").write_text(BUG)
    (folder / "repro.json").write_text(json.dumps(RESULTS))
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UsageError, match="expected a regular file, got a link"):
        bundle.pack(folder, tmp_path / "a.tar", {})


def test_samples_outside_the_run_folder_are_not_plotted(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", "samples.jsonl", disk(1.0, 0, 0), disk(2.0, 1 << 20, 1))
    (folder / "guests" / "g" / "samples.jsonl").symlink_to(tmp_path / "other" / "samples.jsonl")
    assert plots.read_recording(folder, "guests/g", 100).plots == ()
    for evidence in ("../../other", str(tmp_path / "other"), "guests/../../../other", "\0", "\ud800", ""):
        assert plots.read_recording(folder, evidence, 100).plots == ()


def test_a_hard_link_to_another_owners_file_is_not_read(folder: Path, precious: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.link(precious, folder / "console.log")
    assert untrusted_files.read_below(folder, "console.log", 100) == SECRET.encode()  # both are ours
    os.chown(folder, 65534, 65534)
    with pytest.raises(OSError, match="got a hard link to somebody else's"):
        untrusted_files.read_below(folder, "console.log", 100)


@pytest.mark.parametrize(
    "name", ["results.json", "repro.json", "suite.json", "log.jsonl", ".running", "guests/g/console.log"]
)
def test_no_verb_waits_for_a_pipe(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A program that opens a pipe waits for a writer, possibly for ever."""
    if name == ".running":
        going_on = {
            "partial": {"ended": 1, "wanted": 2, "at_most": False, "what": "cases", "why": ""},
            "verdict": "INFRA",
        }
        (folder / "results.json").write_text(json.dumps(scenario_results(folder) | going_on))
    elif name.endswith("console.log"):
        (folder / "repro.json").write_text(json.dumps(hit_results(folder)))
    os.mkfifo(folder / name)
    (tmp_path / "state").mkdir()
    (tmp_path / "runs").rename(tmp_path / "state" / "runs")
    ended = run_verb(monkeypatch, tmp_path, "report", folder.name, "--open")
    if name == "log.jsonl":
        assert "there is none" in str(ended)
    elif name.endswith(".json"):
        assert "expected a regular file, got a pipe" in str(ended)
    else:
        assert isinstance(ended, int)
    for verb in (
        ("runs",),
        ("runs", "--prune", "--older-than", "9999d"),
        ("bundle",),
        ("report",),
        ("gc", "--dry-run"),
    ):
        run_verb(monkeypatch, tmp_path, *verb)
    os.utime(tmp_path / "state" / "runs" / folder.name, (0, 0))
    assert runs.remove_empty_runs(tmp_path / "state" / "runs") == ()


def test_a_folder_named_after_an_impossible_date_is_no_run(folder: Path) -> None:
    for name in ("99999999T999999Z-0000", "\u0662" * 8 + "T000000Z-0000"):
        (folder.parent / name).mkdir()
    assert [path.name for path, _ in runs.run_folders(folder.parent)] == [folder.name]


def test_a_file_is_written_completely_or_not_at_all(folder: Path, precious: Path) -> None:
    (folder / "page").symlink_to(precious)
    untrusted_files.write_below(folder, "page", "text \ud800")
    assert (folder / "page").read_text() == "text ?" and precious.read_text() == SECRET
    with pytest.raises(OSError, match="Is a directory"):
        untrusted_files.write_below(folder, "guests", "text")
    assert sorted(os.listdir(folder)) == ["guests", "page"]  # noqa: PTH208 - names
