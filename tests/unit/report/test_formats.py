"""Files for other programs: results.json against its schema, junit.xml, results.ktap."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from testbed.errors import UsageError
from testbed.guest.channels import dmesg
from testbed.host import paths
from testbed.report import formats, results, schema
from testbed.report.html import html
from testbed.report.junit import junit
from testbed.report.ktap import ktap
from testbed.report.markdown import markdown
from testbed.report.schema import Control, Document, Line, Measure
from testbed.topology import load_points
from testbed.topology.model import Topology
from tests.support import junit as junit_rules
from tests.support import ktap as ktap_rules
from tests.support.run_results import alone, changed, document, failed, lost, passed, plain, skipped

PUBLISHED = Path(results.__file__).with_name("results.schema.json")
# A text of a guest that tries to be more than text.
EVIL = '\x00\x1b[2J]]>&<failure>\ud800\u2028 # SKIP "x"\nok 1 all\n1..0\nKTAP version 1'

# The same after the reader has cleaned it.
SAID = ']]>&<failure>\ufffd\u2028 # SKIP "x"\nok 1 all\n1..0\nKTAP version 1'


def every(folder: Path) -> Document:
    of = (passed(folder), skipped(folder), failed(folder), lost(folder))
    return document(folder, *of)


def evil(folder: Path) -> Document:
    found = every(folder)
    measure = Measure.model_construct(value=1, unit=EVIL, source=EVIL)
    line = Line.model_construct(kind="warning", seconds=None, text=EVIL, expected=False)
    for number, case in enumerate(found.scenarios):
        place = f"scenarios.{number}"
        control = Control.model_construct(name=EVIL, expected=EVIL, got=EVIL, holds=case.verdict == "PASS")
        for side in found.kernels:
            found = changed(found, f"{place}.{side}.reason", EVIL)
            found = changed(found, f"{place}.{side}.measures", {EVIL: measure})
            found = changed(found, f"{place}.{side}.console", [line])
            found = changed(found, f"{place}.{side}.controls", [control])
        found = changed(found, f"{place}.reason", EVIL)
        found = changed(found, f"{place}.name", f"{case.name} {EVIL}")
    return found


def test_results_match_the_published_schema_which_is_made_from_the_models(tmp_path: Path) -> None:
    published = json.loads(PUBLISHED.read_text())
    assert PUBLISHED.read_text() == schema.json_schema(), (
        "write it again: ./tb schema >testbed/report/results.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(published)
    validator = jsonschema.Draft202012Validator(published)
    found = json.loads(results.text(every(tmp_path)))
    validator.validate(found)
    repeated = document(tmp_path, passed(tmp_path), replace(passed(tmp_path), attempt=2))
    validator.validate(json.loads(results.text(repeated)))
    validator.validate(json.loads(results.text(document(tmp_path, alone(passed(tmp_path))))))
    found["scenarios"][0]["patched"]["claim"] = "wonders"
    with pytest.raises(jsonschema.ValidationError, match="wonders"):
        validator.validate(found)


@pytest.mark.parametrize("file", sorted(paths.shipped("topologies").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_topology_in_results_is_the_one_that_ran(tmp_path: Path, file: Path) -> None:
    for ran in load_points(file).values():
        for model in ran.guests.values():
            said = json.loads(results.text(document(tmp_path, passed(tmp_path), model=model)))["topology"]
            assert Topology.model_validate(said).guests["g0"] == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("host"), "version 1: host: Field required"),
        (lambda found: found["scenarios"][0].pop("patched"), "expected a result on patched"),
        (lambda found: found["scenarios"][0]["base"].update(took_s="long"), r"scenarios.0.base.took_s"),
        (
            lambda found: found.update(guest_seconds=float("inf")),
            "expected JSON: expected a finite number, got Infinity",
        ),
        (lambda found: found["scenarios"][0].update(pass_rate=0.5), "expected `pass_rate` and `attempts`, or neither"),
        (
            lambda found: found["scenarios"][0]["base"].update(verdict="PASS"),
            "a verdict and a judgement of each kernel in each case",
        ),
    ],
)
def test_invalid_results_are_refused_with_the_place_of_the_mistake(tmp_path: Path, change: Any, message: str) -> None:
    found = plain(every(tmp_path))
    change(found)
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=message):
        results.read(str(tmp_path), tmp_path)


def test_results_of_an_earlier_testbed_can_be_shown_in_every_format(tmp_path: Path) -> None:
    found = json.loads(results.text(every(tmp_path)))
    for name in ("testbed", "partial", "topology_unused"):
        del found[name]
    for case in found["scenarios"]:
        for side in found["kernels"]:
            for name in ("timeline_missed", "stack", "stack_unread"):
                del case[side][name]
    (tmp_path / "results.json").write_text(json.dumps(found))
    read = results.read(str(tmp_path), tmp_path)
    for name, made in formats.FORMATS.items():
        assert read.run in made(read, tmp_path), name


def test_junit_has_failures_errors_skips_and_the_setup(tmp_path: Path) -> None:
    root = junit_rules.check(junit(every(tmp_path)))
    (suite,) = root
    assert {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")} == {
        **{"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    }
    said = {one.attrib["name"]: one.attrib["value"] for one in suite.iter("property")}
    assert said["kernel.patched.release"] == "6.1-cloud" and said["qemu.version"] == "7.2.22"
    assert said["image.sha256"] == "i" * 64 and said["qemu.sha256"] == "q" * 64 and said["kernel.base.sha256"] == "s"
    error = suite.find("testcase/error[@type='INFRA']")
    assert error is not None and "panic [red]on[/red] its console" in (error.text or "")


def test_junit_has_a_test_for_each_kernel_judged_alone(tmp_path: Path) -> None:
    root = junit_rules.check(junit(document(tmp_path, alone(passed(tmp_path)))))
    assert [case.attrib["name"] for case in root.iter("testcase")] == ["gate on base", "gate on patched"]


def test_ktap_has_a_subtest_for_each_case_and_kernel(tmp_path: Path) -> None:
    (whole,) = ktap_rules.parse(ktap(every(tmp_path)))
    assert (whole.name, whole.status) == ("testbed", "not ok")
    gate, read, write, oom = whole.tests
    assert (gate.name, gate.status, [test.name for test in gate.tests]) == ("gate", "ok", ["base", "patched"])
    assert (read.status, read.directive) == ("ok", "SKIP") and read.why.endswith(
        "the topology has no nvme disk  of 512MB"
    )
    assert write.status == "not ok" and write.diagnostics[0].startswith(
        "# FAIL: the patched kernel does not close the gap"
    )
    assert [test.status for test in write.tests] == ["ok", "not ok"]
    assert oom.status == "not ok" and [test.status for test in oom.tests] == ["not ok", "not ok"]
    assert "# disk reads: 33554432 bytes" in gate.tests[0].diagnostics


def test_a_kernel_warning_is_in_every_report_even_after_many_expected_lines(tmp_path: Path) -> None:
    found = document(tmp_path, passed(tmp_path))
    (case,) = found.scenarios
    text = "WARNING: block/bio.c:9 at submit_bio+0x1/0x2"
    warning = Line(kind="warning", seconds=9.0, text=text, expected=False)
    console = [case.sides["patched"].console[0]] * 5000 + [warning] * 3
    found = changed(found, "scenarios.0.patched.console", console)
    said = "patched: warning: WARNING: block/bio.c:9 at submit_bio+0x1/0x2 (and 2 more)"
    (whole,) = ktap_rules.parse(ktap(found))
    assert f"# kernel log: {said}" in whole.tests[0].tests[1].diagnostics
    (output,) = junit_rules.check(junit(found)).iter("system-out")
    assert f"kernel log: {said}" in (output.text or "")
    assert f"do not belong to a case: gate on {said}." in markdown(found)
    assert "warning, unexpected" in html(found, tmp_path)
    assert "do not belong to a case: none." in markdown(document(tmp_path, passed(tmp_path)))


def test_an_unread_kernel_log_is_in_every_report_and_changes_no_verdict(tmp_path: Path) -> None:
    text = "the kernel's log was not read: guest g0: it does not answer"
    result = passed(tmp_path)
    (unread,) = dmesg.merge((), dmesg.unreadable("guest g0: it does not answer"), 500)
    found = document(
        tmp_path,
        replace(result, sides=result.sides | {"patched": replace(result.sides["patched"], findings=(unread,))}),
    )
    (case,) = found.scenarios
    assert case.verdict == "PASS"
    assert case.sides["patched"].console == [Line(kind="not read", seconds=None, text=text, expected=False)]
    jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text())).validate(json.loads(results.text(found)))
    said = f"patched: not read: {text}"
    (whole,) = ktap_rules.parse(ktap(found))
    assert f"# kernel log: {said}" in whole.tests[0].tests[1].diagnostics
    (output,) = junit_rules.check(junit(found)).iter("system-out")
    assert f"kernel log: {said}" in (output.text or "")
    assert f"do not belong to a case: gate on {said}." in markdown(found)
    assert "not read, unexpected" in html(found, tmp_path)


def test_no_text_of_a_guest_becomes_another_result(tmp_path: Path) -> None:
    (whole,) = ktap_rules.parse(ktap(evil(tmp_path)))
    assert [test.status for test in whole.tests] == ["ok", "ok", "not ok", "not ok"]
    assert [test.directive for test in whole.tests] == [None, "SKIP", None, None]
    root = junit_rules.check(junit(evil(tmp_path)))
    assert len(list(root.iter("testcase"))) == 4 and len(list(root.iter("failure"))) == 1


def test_all_files_are_written_whatever_a_guest_reported(tmp_path: Path) -> None:
    formats.write(evil(tmp_path), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.ktap", "junit.xml", "report.html"}
    assert results.read(str(tmp_path), tmp_path).scenarios[0].reason == SAID


@pytest.mark.parametrize(
    "text",
    [
        "1..1\nok 1 a\n",
        "KTAP version 2\n1..1\nok 1 a\n",
        "KTAP version 1\nok 1 a\n",
        "KTAP version 1\n1..2\nok 1 a\n",
        "KTAP version 1\n1..1\nok 2 a\n",
        "KTAP version 1\n1..1\nok 1 a\nok 2 b\n",
        "KTAP version 1\n1..1\nfine 1 a\n",
        "KTAP version 1\n1..1\nok 1 a",
    ],
)
def test_the_ktap_parser_of_these_tests_refuses_malformed_ktap(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|no end|more after"):
        ktap_rules.parse(text)
