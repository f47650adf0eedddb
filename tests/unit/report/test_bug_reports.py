"""Reports of runs of bugs and suites: files, tables, and runs that ended early."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.api.blktests import RESULTS
from testbed.bugs import conclusion
from testbed.bugs.bisect import UNFINISHED
from testbed.bugs.bisect_search import BisectAnswer
from testbed.bugs.kernel_tries import KernelVerdict
from testbed.errors import UsageError
from testbed.guest.channels.kernel_log import Finding, Kind
from testbed.report import result_reader, runs
from testbed.report.bugs import files as bug_files
from testbed.report.bugs import results
from testbed.report.bugs import tables as report
from testbed.report.bugs.results import RunInfo
from testbed.report.partial import Partial
from testbed.text import parse_printable_json
from tests.support import junit as junit_rules
from tests.support import ktap as ktap_rules
from tests.support.bug_runs import EVIL, HIT, MISS, SHORT, documents, job, tried
from tests.support.command import testbed


@pytest.mark.parametrize("what", ["repro", "reduce", "bisect", "ask"])
@pytest.mark.slow
def test_a_run_is_read_again_listed_and_shown(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "state" / "runs" / "20260101T000000Z-abcd"
    guest = folder / "guests" / "bad-1"
    guest.mkdir(parents=True)
    (guest / "console.log").write_text(f"first\n{EVIL}\nlast words\n")
    document = documents(folder)[what]
    bug_files.write(document, folder)
    read = bug_files.read(folder)
    assert read is not None and read.as_json() == parse_printable_json(json.dumps(document.as_json()).encode())
    (listed,) = runs.list_runs(folder.parent, result_reader.summarize)
    assert (listed.verdict, listed.command[0]) == (document.result, "verb") and listed.cases

    page = (folder / "report.html").read_text()
    assert "<script>" not in page and "last words" in page and 'href="./guests/bad-1/console.log"' in page
    printed = testbed(tmp_path, "report", "last")
    text = printed.stdout
    assert printed.returncode == {"ask": 1, "repro": 3}.get(what, 0)
    assert f": {document.result}" in text and "./tb verb --expect" in text and "1 of 1: 1% to 100%" in text
    assert "\x1b" not in text
    shown = testbed(tmp_path, "report", "--format", "junit")
    if what == "repro":
        junit_rules.check((folder / "junit.xml").read_text())
        ktap_rules.parse((folder / "results.ktap").read_text())
        assert (
            'name="a bug' in shown.stdout
            and 'failures="0"' in shown.stdout
            and "not ok 2 good" in (folder / "results.ktap").read_text()
        )
        assert "not told apart" in text and "good (not seen in 2 tries, up to 66%)" in text
    else:
        assert shown.returncode == 2 and f"`{document.what}` passes or fails nothing" in shown.stderr
    assert "expected a run of scenarios, got one of" in testbed(tmp_path, "report", "--diff", "last", "last").stderr


INTERRUPTED = Partial(ended=1, wanted=12, at_most=True, what="tries", why="interrupted by SIGINT")


@pytest.mark.parametrize("what", ["repro", "reduce", "bisect", "ask", "suite"])
@pytest.mark.slow
def test_a_run_that_ended_early_is_shown_as_that(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "state" / "runs" / "20260101T000000Z-abcd"
    folder.mkdir(parents=True)
    document = documents(folder, INTERRUPTED)[what]
    assert document.result == "unfinished" and documents(folder)[what].result != "unfinished"
    bug_files.write(document, folder)
    (listed,) = runs.list_runs(folder.parent, result_reader.summarize)
    assert listed.partial == INTERRUPTED
    said = "1 of at most 12 tries ended; interrupted by SIGINT"
    for kind in ("markdown", "html"):
        text = bug_files.FORMATS[kind](document, folder)
        assert "unfinished" in text and said in text
    shown = testbed(tmp_path, "report")
    assert shown.returncode == 2 and said in shown.stdout and shown.stderr.startswith("verdict: unfinished ")
    assert "1 of 12" in testbed(tmp_path, "runs").stdout
    if what in ("repro", "suite"):
        junit_rules.check((folder / "junit.xml").read_text())
        assert f'message="Partial: {said}.' in (folder / "junit.xml").read_text()
        *_, whole = ktap_rules.parse((folder / "results.ktap").read_text())[0].tests
        assert (whole.name, whole.status) == ("the whole run", "not ok")


def test_a_killed_run_says_so_where_its_results_are_read(tmp_path: Path) -> None:
    going_on = INTERRUPTED.model_copy(update={"why": ""})
    (tmp_path / "suite.json").write_text(json.dumps(documents(tmp_path, going_on)["suite"].as_json()))
    with runs.running(tmp_path, ["testbed"]):
        running = bug_files.read(tmp_path)
    assert running is not None and str(running.partial).endswith("; the run goes on")
    killed = bug_files.read(tmp_path)
    assert killed is not None and killed.partial is not None
    assert killed.partial.why.startswith("its process ended without writing why")


def test_what_is_known_of_a_suite_or_a_clean_kernel_stays_known_where_a_run_ends_early(tmp_path: Path) -> None:
    wrong = conclusion.conclude((tried("bad", HIT), tried("good", HIT, must_show=False, ended=False)))
    assert wrong[0] is conclusion.ReproResult.INVALID
    found = (tried("bad", HIT), tried("good", HIT, must_show=False, ended=False))
    interrupted = RunInfo(command=[], took_s=9.0, partial=INTERRUPTED)
    assert results.repro_document(job(tmp_path), found, interrupted).result == "invalid"
    # No hit in some of the tries is no absence.
    assert (
        tried("bad", MISS, MISS, ended=False).verdict is KernelVerdict.TROUBLE
        and tried("bad", MISS).verdict is KernelVerdict.ABSENT
    )


def test_results_that_are_broken_say_where(tmp_path: Path) -> None:
    (tmp_path / "repro.json").write_text(
        json.dumps(documents(tmp_path)["repro"].as_json() | {"kernels": [{"name": 3}]})
    )
    with pytest.raises(UsageError, match=r"repro\.json: expected the results of a run, version 1: kernels\.0\.name"):
        bug_files.read(tmp_path)
    (tmp_path / "repro.json").write_text("{")
    with pytest.raises(UsageError, match="expected JSON"):
        bug_files.read(tmp_path)
    assert bug_files.read(tmp_path / "guests") is None


def test_every_result_has_an_exit_code() -> None:
    every = (
        {result.value for result in conclusion.ReproResult}
        | {answer.value for answer in BisectAnswer}
        | {"reduced", "bisected", "wrong ends", "comes and goes", UNFINISHED}
    )
    every |= set(RESULTS.values())
    assert every == results.EXIT_CODES.keys()


def test_every_report_says_how_tries_ended_that_did_not_show_it(tmp_path: Path) -> None:
    clean = tried("clean", MISS, MISS, MISS, must_show=False)
    ways = ("status 0, last line: refused", "status 0, last line: refused", "status 1, and it printed nothing")
    tries = tuple(replace(one, why=why, last_line="refused") for one, why in zip(clean.tries, ways, strict=True))
    document = results.repro_document(job(tmp_path), (tried("shows", HIT), replace(clean, tries=tries)), SHORT)
    bug_files.write(document, tmp_path)
    said = "where it did not show: status 0, last line: refused (2 times); status 1, and it printed nothing"
    assert f"clean: {said}" in report.notable_outcomes(document)
    assert all("did not show" not in line for line in report.notable_outcomes(document) if line.startswith("shows"))
    assert report.try_line(document.kernels[1].attempts[0]).endswith(": status 0, last line: refused")
    for text in (
        bug_files.markdown(document),
        *((tmp_path / name).read_text() for name in ("report.html", "repro.json", "junit.xml")),
    ):
        assert "status 0, last line: refused" in text
    assert document.kernels[1].attempts[0].last_line == "refused"


def test_a_kernel_that_complains_where_the_bug_does_not_show_is_named(tmp_path: Path) -> None:
    clean = tried("clean", MISS, MISS, MISS, must_show=False)
    findings = tuple(
        Finding(kind=kind, seconds=1.0, text=text)
        for kind, text in (
            (Kind.OOM, "dd invoked oom-killer"),
            (Kind.WARNING, "WARNING: a"),
            (Kind.WARNING, "WARNING: b"),
        )
    )
    unread = (Finding(kind=Kind.UNREAD, seconds=None, text="the kernel's log was not read: x"),)
    tries = (replace(clean.tries[0], findings=findings), replace(clean.tries[1], findings=unread), *clean.tries[2:])
    document = results.repro_document(job(tmp_path), (tried("shows", HIT), replace(clean, tries=tries)), SHORT)
    assert document.kernels[1].attempts[0].kernel_log == ["warning: WARNING: a (and 1 more)"]
    assert document.kernels[1].attempts[1].kernel_log == ["not read: the kernel's log was not read: x"]
    assert any(
        "; its kernel's log in 2: warning: WARNING: a (and 1 more)" in line
        for line in report.notable_outcomes(document)
    )
    bug_files.write(document, tmp_path)
    for text in (
        bug_files.markdown(document),
        *((tmp_path / name).read_text() for name in ("report.html", "junit.xml")),
    ):
        assert "warning: WARNING: a (and 1 more)" in text
