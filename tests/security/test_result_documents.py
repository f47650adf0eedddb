"""Attacks by the contents of result files: sizes, numbers, and verdicts that their parts contradict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import UsageError
from testbed.report import result_reader, results, runs, schema
from testbed.report.bugs import files
from testbed.report.bugs import results as bug_documents
from testbed.report.bugs.results import RunInfo
from testbed.report.bugs.schema import BugDocument
from testbed.report.partial import Partial
from testbed.text import parse_printable_json
from tests.support import junit as junit_rules
from tests.support import ktap as ktap_rules
from tests.support.bug_runs import HIT, MISS, documents, job, tried
from tests.support.run_folders import bug_results, run_verb, scenario_results, with_value
from tests.support.run_results import alone, document, failed, passed, plain


def test_results_that_are_too_large_are_refused_before_they_are_read(folder: Path) -> None:
    with (folder / "results.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        UsageError, match=r"results\.json: cannot be read: expected at most \d+ bytes, got 1099511627776"
    ):
        result_reader.read_document(folder)
    (folder / "results.json").write_bytes(b"[" + b"0," * 3_000_000 + b"0]")
    with pytest.raises(UsageError, match="it has about 3000001 values, expected at most"):
        result_reader.read_document(folder)


def test_only_the_first_of_many_errors_is_collected(folder: Path) -> None:
    """Collecting all of them took gigabytes."""
    found = scenario_results(folder) | {"scenarios": [{}] * 300_000}
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"scenarios\.0\.verdict: Field required"):
        result_reader.read_document(folder)
    found = scenario_results(folder)
    found["scenarios"][0]["base"]["measures"] = {str(number): {} for number in range(300_000)}
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"base\.measures: Value error, expected at most 3000 of them, got 300000"):
        result_reader.read_document(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("verdict", "PASS", "expected the verdict FAIL by those of its cases, got PASS"),
        ("verdict", "SKIP", "expected the verdict FAIL by those of its cases, got SKIP"),
        ("scenarios.1.verdict", "PASS", "patched: expected closed and controls that hold for a PASS, got open"),
        ("scenarios.0.base.claim", "closed", "base: expected open and controls that hold for a PASS, got closed"),
        ("scenarios.0.patched.controls.0.holds", False, "patched: expected closed and controls that hold for a PASS"),
        ("took_s", "3", "took_s: Input should be a valid number"),
        ("took_s", 10**400, "expected a whole number of at most 64 bits"),
        ("took_s", -1, "took_s: Input should be greater than or equal to 0"),
        ("host.cores", 2.0, "host.cores: Input should be a valid integer"),
        ("host.cores", True, "host.cores: Input should be a valid integer"),
        ("host.memory_bytes", -1, "host.memory_bytes: Input should be greater than or equal to 0"),
        ("scenarios.0.base.evidence", "../../etc", "evidence: Value error, expected a path below the run's folder"),
        ("scenarios.0.base.evidence", "/etc", "evidence: Value error, expected a path below the run's folder"),
        ("scenarios.0.reason", None, "reason: Input should be a valid string"),
        ("kernels.claim", {}, "kernels.claim.name: Field required"),
    ],
)
def test_results_that_contradict_themselves_are_refused(folder: Path, path: str, value: Any, message: str) -> None:
    (folder / "results.json").write_text(
        json.dumps(with_value(plain(document(folder, passed(folder), failed(folder))), path, value))
    )
    with pytest.raises(UsageError, match=message):
        results.read(str(folder), folder.parent)


def test_a_kernel_with_the_name_of_a_case_key_is_refused(folder: Path) -> None:
    found = scenario_results(folder)
    found["kernels"]["claim"] = found["kernels"]["base"]
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match="expected names of kernels that are no keys of a case, got claim"):
        results.read(str(folder), folder.parent)


def test_a_verdict_that_kernels_or_attempts_contradict_is_refused(folder: Path) -> None:
    found = plain(document(folder, alone(passed(folder))))
    found["scenarios"][0]["base"]["verdict"] = "FAIL"
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match="expected the verdict FAIL by those of its kernels, got PASS"):
        result_reader.read_document(folder)
    apart = "FAIL by those of the attempts of case gate, got PASS"
    for rate, verdict, message in ((1.0, "FAIL", apart), (0.5, "PASS", "expected a pass rate as its attempts have it")):
        found = plain(document(folder, passed(folder)))
        case = found["scenarios"][0]
        attempt = {key: case[key] for key in ("verdict", "reason", "base", "patched")}
        case |= {"pass_rate": rate, "attempts": [attempt, attempt | {"verdict": verdict}]}
        (folder / "results.json").write_text(json.dumps(found))
        with pytest.raises(UsageError, match=message):
            result_reader.read_document(folder)


@pytest.mark.parametrize(
    ("what", "path", "value", "message"),
    [
        ("repro", "result", "reproduced", "expected the result `not told apart`, as its parts say, got `reproduced`"),
        (
            "repro",
            "kernels.0.first_hit_s",
            None,
            "expected `first_hit` and `first_hit_s` where there was a hit, or neither",
        ),
        (
            "repro",
            "kernels.0.first_hit",
            None,
            "expected `first_hit` and `first_hit_s` where there was a hit, or neither",
        ),
        ("repro", "kernels.0.hits", 5, "expected 1 hits in 1 tries and 1 troubles, as its attempts say"),
        ("repro", "kernels.0.verdict", "absent", "expected the verdict shows, as its tries say, got absent"),
        ("repro", "kernels.1.verdict", "shows", "expected the verdict absent, as its tries say, got shows"),
        ("repro", "kernels.1.name", "bad", "expected kernels of different names"),
        ("repro", "kernels.0.attempts.0.seen", None, "expected what was `seen` of a hit"),
        ("repro", "kernels.0.attempts.0.evidence", "/etc", "evidence: Value error, expected a path below"),
        ("repro", "kernels.0.interval", [0.5], "interval"),
        ("repro", "kernels.0.interval", "no", "interval"),
        ("reduce", "kernels", [], "kernels"),
        ("reduce", "steps.0.folder", "/etc", "folder: Value error, expected a path below"),
        ("bisect", "asked", [], "expected another result of no answers, got bisected"),
        ("bisect", "asked.0.answer", "good", "expected another answer of 1 hits in 1 tries, got good"),
        ("suite", "tests.0.status", "fail", "expected the result `failed`, as its parts say, got `passed`"),
        ("suite", "result", "failed", "expected the result `passed`, as its parts say, got `failed`"),
        ("suite", "tests.0.folder", "../..", "folder: Value error, expected a path below"),
    ],
)
def test_results_of_bugs_and_suites_that_contradict_themselves_are_refused(
    folder: Path, what: str, path: str, value: Any, message: str
) -> None:
    (folder / f"{what}.json").write_text(json.dumps(with_value(bug_results(folder, what), path, value)))
    with pytest.raises(UsageError, match=message):
        files.read(folder)


def test_every_document_that_is_written_can_be_read(folder: Path) -> None:
    end = Partial(ended=1, wanted=3, at_most=False, what="tries", why="interrupted by SIGINT")
    apart = (tried("bad", *[HIT] * 9), tried("good", *[MISS] * 9, must_show=False))
    wrong = (tried("bad", HIT), tried("good", HIT, must_show=False))
    written: list[BugDocument] = [*documents(folder).values(), *documents(folder, end).values()]
    for kernels in (apart, wrong):
        for partial in (None, end):
            run = RunInfo(command=[], took_s=9.0, partial=partial)
            written.append(bug_documents.repro_document(job(folder), kernels, run))
    for of_run in written:
        text = results.text(of_run)
        (folder / of_run.file_name).write_text(text)
        read = result_reader.read_document(folder)
        assert read is not None and read.as_json() == parse_printable_json(text.encode()), of_run.result
        (folder / of_run.file_name).unlink()


@pytest.mark.parametrize("name", sorted(schema.KEYS_OF_CASES))
def test_a_kernel_of_a_bug_may_have_the_name_of_a_case_key(folder: Path, name: str) -> None:
    run = RunInfo(command=["testbed"], took_s=9.0)
    tries = (tried(name, HIT), tried("good", MISS, must_show=False))
    found = bug_documents.repro_document(job(folder), tries, run)
    files.write(found, folder)
    junit_rules.check((folder / "junit.xml").read_text())
    (whole,) = ktap_rules.parse((folder / "results.ktap").read_text())
    assert [one.name for one in whole.tests[0].tests] == [f"kernel {name}", "good"]
    read = files.read(folder)
    assert read is not None and read.as_json() == parse_printable_json(results.text(found).encode())


@pytest.mark.parametrize("name", ["claim", "reason", "attempts"])
def test_the_matrix_refuses_kernels_with_the_name_of_a_case_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert f"name the file by a path, as ./{name}" in str(
        run_verb(monkeypatch, tmp_path, "matrix", "gate", "--kernels", f"debian-6.1,{name}")
    )
    twice = run_verb(monkeypatch, tmp_path, "matrix", "gate", "--kernels", "debian-6.1, debian-6.1")
    assert str(twice) == "--kernels: expected each kernel once, got debian-6.1 twice"


def test_unknown_keys_change_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stray = {"result": "reproduced", "what": "repro", "smaller": 3, "tests": 3, "asked": 3, "steps": 3}
    found = plain(document(folder, failed(folder)))
    (folder / "results.json").write_text(json.dumps(found | stray))
    (folder / "repro.json").write_text("{}")
    (tmp_path / "state").mkdir()
    (listed,) = runs.list_runs(folder.parent, result_reader.summarize)
    assert (listed.verdict, listed.cases) == ("FAIL", 1)
    assert run_verb(monkeypatch, tmp_path, "report", str(folder)) == 1
    assert "expected the folder of a run of `testbed repro`" in str(
        run_verb(monkeypatch, tmp_path, "bundle", str(folder))
    )
    (folder / "results.json").unlink()
    (folder / "repro.json").write_text(json.dumps({"verdict": "PASS"} | stray | bug_results(folder)))
    assert run_verb(monkeypatch, tmp_path, "report", str(folder)) == 3
