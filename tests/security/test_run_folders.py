"""Folders of runs that a stranger has filled: links, pipes, sizes, and results that are none or say what their cases do not."""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.bugs import bundle
from testbed.cli.app import app
from testbed.errors import TestbedError, UsageError
from testbed.host import untrusted_files
from testbed.report import diff, plots, result_reader, results, runs, schema, sensitivity, stack_svg
from testbed.report import formats as artefacts
from testbed.report.bugs import files
from testbed.report.bugs import results as bug_results
from testbed.report.markdown import markdown
from testbed.report.partial import Partial
from testbed.report.schema import Block, Stack
from testbed.text import parse_printable_json
from tests.support import junit as junit_rules
from tests.support import ktap as ktap_rules
from tests.support.run_results import alone, document, failed, passed
from tests.unit.bugs.test_bug_runs import HIT, MISS, documents, job, tried
from tests.unit.bugs.test_bundle import BUG, RESULTS
from tests.unit.guest.metrics.test_samples import disk, write

SECRET = "root:$6$secret"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "runs" / "20260101T000000Z-abcd"
    (made / "guests" / "g").mkdir(parents=True)
    return made


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    file = tmp_path / "precious"
    file.write_text(SECRET)
    return file


def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> object:
    """What a verb ends with: its code, or its error."""
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"TESTBED_{name}", str(tmp_path / name.lower()))
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    for room in ("reports", "bundle", "cache", "run"):
        cli.load(room)
    try:
        app(list(words), standalone_mode=False)
    except SystemExit as ended:
        return ended.code
    except TestbedError as error:
        return error
    return 0


def scenarios(folder: Path) -> dict[str, Any]:
    return document(folder, passed(folder))


def bug(folder: Path) -> dict[str, Any]:
    return documents(folder)["repro"]


@pytest.mark.parametrize(("name", "of"), [("results.json", scenarios), ("repro.json", bug)])
@pytest.mark.parametrize("link", ["report.html", ".report.html.unfinished", ".running", "junit.xml"])
def test_no_link_of_a_run_folder_is_written_through(
    folder: Path,
    precious: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    of: Callable[[Path], Any],
    link: str,
) -> None:
    found = of(folder)
    # Of a run that goes on its lock is asked.
    found["partial"] = {"ended": 1, "wanted": 2, "at_most": False, "what": "cases", "why": ""}
    found |= {"verdict": "INFRA"} if "verdict" in found else {"result": "unfinished"}
    (folder / name).write_text(json.dumps(found))
    (folder / link).symlink_to(precious)
    assert said(monkeypatch, tmp_path, "report", str(folder), "--open") == 2
    assert precious.read_text() == SECRET
    assert (folder / "report.html").is_file() and not (folder / "report.html").is_symlink()


def test_an_output_in_the_folder_replaces_a_link_and_elsewhere_follows_it(
    folder: Path, precious: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "results.json").write_text(json.dumps(scenarios(folder)))
    (folder / "notes.md").symlink_to(precious)
    assert said(monkeypatch, tmp_path, "report", str(folder), "-o", str(folder / "notes.md")) == 0
    assert precious.read_text() == SECRET and (folder / "notes.md").read_text().startswith("# Base against patched")
    (tmp_path / "own.md").symlink_to(precious)
    assert said(monkeypatch, tmp_path, "report", str(folder), "-o", str(tmp_path / "own.md")) == 0
    assert precious.read_text().startswith("# Base against patched")


def hit(folder: Path) -> dict[str, Any]:
    found = bug(folder)
    found["kernels"][0]["attempts"][0]["evidence"] = "g"
    return found


@pytest.mark.parametrize("step", ["guests/g/console.log", "guests/g", "guests"])
def test_what_a_link_leads_to_is_on_no_page_and_in_no_bundle(folder: Path, tmp_path: Path, step: str) -> None:
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
    page = files.FORMATS["html"](hit(folder), folder)
    assert SECRET not in page and "console.log" not in page
    (folder / "bug.yaml").write_text(BUG)
    (folder / "repro.json").write_text(json.dumps(RESULTS))
    bundle.pack(folder, tmp_path / "a.tar", {})
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == ["manifest.json", "bug.yaml", "repro.json"]


@pytest.mark.parametrize("name", ["bug.yaml", "repro.json"])
def test_no_bundle_is_made_of_links(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "bug.yaml").write_text(BUG)
    (folder / "repro.json").write_text(json.dumps(RESULTS))
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UsageError, match="expected a regular file, got a link"):
        bundle.pack(folder, tmp_path / "a.tar", {})


def test_samples_of_elsewhere_are_not_plotted(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", "samples.jsonl", disk(1.0, 0, 0), disk(2.0, 1 << 20, 1))
    (folder / "guests" / "g" / "samples.jsonl").symlink_to(tmp_path / "other" / "samples.jsonl")
    assert plots.read_recording(folder, "guests/g", 100).plots == ()
    for evidence in ("../../other", str(tmp_path / "other"), "guests/../../../other", "\0", "\ud800", ""):
        assert plots.read_recording(folder, evidence, 100).plots == ()


def test_a_hard_link_to_somebody_elses_file_is_not_read(folder: Path, precious: Path) -> None:
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
def test_a_pipe_holds_nothing_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whoever opens it waits for a writer, for ever."""
    if name == ".running":
        going_on = {
            "partial": {"ended": 1, "wanted": 2, "at_most": False, "what": "cases", "why": ""},
            "verdict": "INFRA",
        }
        (folder / "results.json").write_text(json.dumps(scenarios(folder) | going_on))
    elif name.endswith("console.log"):
        (folder / "repro.json").write_text(json.dumps(hit(folder)))
    os.mkfifo(folder / name)
    (tmp_path / "state").mkdir()
    (tmp_path / "runs").rename(tmp_path / "state" / "runs")
    ended = said(monkeypatch, tmp_path, "report", folder.name, "--open")
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
        said(monkeypatch, tmp_path, *verb)
    os.utime(tmp_path / "state" / "runs" / folder.name, (0, 0))
    assert runs.remove_empty_runs(tmp_path / "state" / "runs") == ()


def test_results_beyond_any_size_are_refused_before_they_are_read(folder: Path) -> None:
    with (folder / "results.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        UsageError, match=r"results\.json: cannot be read: expected at most \d+ bytes, got 1099511627776"
    ):
        result_reader.read_document(folder)
    (folder / "results.json").write_bytes(b"[" + b"0," * 3_000_000 + b"0]")
    with pytest.raises(UsageError, match="it has about 3000001 values, expected at most"):
        result_reader.read_document(folder)


def test_mistakes_without_number_are_told_by_their_first(folder: Path) -> None:
    """Gathering all took gigabytes."""
    found = scenarios(folder) | {"scenarios": [{}] * 300_000}
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"scenarios\.0\.verdict: Field required"):
        result_reader.read_document(folder)
    found = scenarios(folder)
    found["scenarios"][0]["base"]["measures"] = {str(number): {} for number in range(300_000)}
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"base\.measures: Value error, expected at most 3000 of them, got 300000"):
        result_reader.read_document(folder)


EVIL = "\x1b]0;owned\x07\x1b[2Jname\u202e\x9b31m\ud800"


@pytest.mark.parametrize("what", ["results.json", "repro.json", "reduce.json", "bisect.json", "suite.json"])
def test_no_name_command_or_release_steers_the_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    found = scenarios(folder) if what == "results.json" else documents(folder)[what.removesuffix(".json")]

    def evil(value: Any, key: str = "") -> Any:
        """Every text that no list of words names."""
        if isinstance(value, dict):
            return {name: evil(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [evil(one, key) for one in value]
        words = {
            "verdict",
            "result",
            "what",
            "claim",
            "accelerator",
            "series",
            "outcome",
            "status",
            "answer",
            "evidence",
            "folder",
        }
        return value + EVIL if isinstance(value, str) and key not in words | {"topology", "cached"} else value

    topology = found.get("topology")
    (folder / what).write_text(json.dumps(evil(found) | ({"topology": topology} if topology else {})))
    formats = ("markdown", "html", "json") if what in ("reduce.json", "bisect.json") else artefacts.FORMATS
    for kind in formats:
        assert isinstance(said(monkeypatch, tmp_path, "report", str(folder), "--format", kind), int), kind
        printed = capsys.readouterr()
        assert not set("\x1b\x07\u202e\x9b\ud800\r") & set(printed.out + printed.err), kind
        assert "owned" in printed.out
    if what == "results.json":
        assert isinstance(said(monkeypatch, tmp_path, "report", "--diff", str(folder), str(folder)), int)
        assert not set("\x1b\x07\u202e\x9b\ud800\r") & set(capsys.readouterr().out)
    said(monkeypatch, tmp_path, "runs")


def changed(found: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *above, last = path.split(".")
    at: Any = found
    for step in above:
        at = at[int(step) if step.isdigit() else step]
    at[int(last) if last.isdigit() else last] = value
    return found


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
        json.dumps(changed(document(folder, passed(folder), failed(folder)), path, value))
    )
    with pytest.raises(UsageError, match=message):
        results.read(str(folder), folder.parent)


def test_a_kernel_is_not_called_like_a_key_of_its_case(folder: Path) -> None:
    found = scenarios(folder)
    found["kernels"]["claim"] = found["kernels"]["base"]
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match="expected names of kernels that are no keys of a case, got claim"):
        results.read(str(folder), folder.parent)


def test_attempts_and_kernels_that_say_another_verdict_are_refused(folder: Path) -> None:
    found = document(folder, alone(passed(folder)))
    found["scenarios"][0]["base"]["verdict"] = "FAIL"
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match="expected the verdict FAIL by those of its kernels, got PASS"):
        result_reader.read_document(folder)
    apart = "FAIL by those of the attempts of case gate, got PASS"
    for rate, verdict, message in ((1.0, "FAIL", apart), (0.5, "PASS", "expected a pass rate as its attempts have it")):
        found = document(folder, passed(folder))
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
    (folder / f"{what}.json").write_text(json.dumps(changed(documents(folder)[what], path, value)))
    with pytest.raises(UsageError, match=message):
        files.read(folder)


def test_what_every_run_writes_is_what_every_run_reads(folder: Path) -> None:
    end = Partial(ended=1, wanted=3, what="tries", why="interrupted by SIGINT")
    apart = (tried("bad", *[HIT] * 9), tried("good", *[MISS] * 9, must_show=False))
    wrong = (tried("bad", HIT), tried("good", HIT, must_show=False))
    every = [*documents(folder).values(), *documents(folder, end).values()]
    every += [
        bug_results.repro_document(job(folder), found, [], 9.0, partial)
        for found in (apart, wrong)
        for partial in (None, end)
    ]
    for one in every:
        name = f"{one['what']}.json"
        (folder / name).write_text(json.dumps(one))
        assert result_reader.read_document(folder) == parse_printable_json(json.dumps(one).encode()), one["result"]
        (folder / name).unlink()


def test_halves_of_characters_and_control_codes_are_left_out_of_keys_as_well() -> None:
    assert parse_printable_json(b'{"a\\u001b[2J": ["\\ud800", 1, null, "\\u202eb"]}') == {"a": ["\ufffd", 1, None, "b"]}
    with pytest.raises(ValueError, match="at most 64 levels"):
        parse_printable_json(b"[" * 900 + b"]" * 900)


def test_no_day_that_there_is_not_is_a_run(folder: Path) -> None:
    for name in ("99999999T999999Z-0000", "\u0662" * 8 + "T000000Z-0000"):
        (folder.parent / name).mkdir()
    assert [path.name for path, _ in runs.run_folders(folder.parent)] == [folder.name]


def test_what_is_written_is_there_as_a_whole_or_not_at_all(folder: Path, precious: Path) -> None:
    (folder / "page").symlink_to(precious)
    untrusted_files.write_below(folder, "page", "text \ud800")
    assert (folder / "page").read_text() == "text ?" and precious.read_text() == SECRET
    with pytest.raises(OSError, match="Is a directory"):
        untrusted_files.write_below(folder, "guests", "text")
    assert sorted(os.listdir(folder)) == ["guests", "page"]  # noqa: PTH208 - names


FORGED = "name\n## Changed\n| gate | PASS |\nok 1 all"


def lines_of(text: str) -> int:
    return len(text.splitlines())


@pytest.mark.parametrize("what", ["results.json", "repro.json", "reduce.json", "bisect.json", "suite.json"])
def test_no_name_begins_a_line_of_its_own(folder: Path, what: str) -> None:
    """What looks like another result is a part of the text that a stranger wrote."""

    def texts(found: dict[str, Any]) -> list[str]:
        if what != "results.json":
            return [files.markdown(found)]
        return [markdown(found), diff.text(diff.compare(found, found))]

    found = (
        document(folder, passed(folder), failed(folder))
        if what == "results.json"
        else documents(folder)[what.removesuffix(".json")]
    )
    plain = texts(found)
    for kernel in (
        (found["kernels"] if isinstance(found["kernels"], list) else found["kernels"].values())
        if "kernels" in found
        else ()
    ):
        if isinstance(kernel, dict):
            kernel |= {"release": FORGED, "origin": FORGED, "name": FORGED}
    for case in found.get("scenarios", ()):
        case["name"] += FORGED
        for side in ("base", "patched"):
            case[side]["measures"] = {FORGED: {"value": 1, "unit": FORGED, "source": FORGED}}
            case[side]["balances"] = [{"what": FORGED, "accounted": 1, "real": 2, "difference": -1, "share": 0.5}]
            case[side]["console"] = [{"kind": FORGED, "seconds": None, "text": FORGED, "expected": False}]
    found |= {"run": FORGED, "command": ["testbed", FORGED], "host": found["host"] | {"kernel": FORGED, "qemu": FORGED}}
    if "bug" in found:
        found["bug"] |= {"summary": FORGED, "source": FORGED, "signature": [FORGED]}
    assert [lines_of(text) for text in texts(found)] == [lines_of(text) for text in plain]


def test_a_table_of_runs_has_a_row_for_each_case_whatever_it_is_called() -> None:
    made = {FORGED: {"no-io-charge": sensitivity.NOTICED}, "gate": {"no-io-charge": sensitivity.NOTICED}}
    plain = {"other": made[FORGED], "gate": made["gate"]}
    assert lines_of(sensitivity.markdown(made, "")) == lines_of(sensitivity.markdown(plain, ""))


@pytest.mark.parametrize("name", sorted(schema.KEYS_OF_CASES))
def test_a_bugs_kernel_may_be_called_like_a_key_of_a_case(folder: Path, name: str) -> None:
    found = bug_results.repro_document(
        job(folder), (tried(name, HIT), tried("good", MISS, must_show=False)), ["testbed"], 9.0
    )
    files.write(found, folder)
    junit_rules.check((folder / "junit.xml").read_text())
    (whole,) = ktap_rules.parse((folder / "results.ktap").read_text())
    assert [one.name for one in whole.tests[0].tests] == [f"kernel {name}", "good"]
    assert files.read(folder) == parse_printable_json(json.dumps(found).encode())


@pytest.mark.parametrize("name", ["claim", "reason", "attempts"])
def test_a_column_of_the_matrix_is_no_key_of_its_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert f"name the file by a path, as ./{name}" in str(
        said(monkeypatch, tmp_path, "matrix", "gate", "--kernels", f"debian-6.1,{name}")
    )
    twice = said(monkeypatch, tmp_path, "matrix", "gate", "--kernels", "debian-6.1, debian-6.1")
    assert str(twice) == "--kernels: expected each kernel once, got debian-6.1 twice"


def chain(length: int) -> Stack:
    """Devices that each stand on the next, and the last on the first: nothing can come first."""
    like: dict[str, Any] = dict.fromkeys(
        ("size_bytes", "logical_block_size", "read_ahead_bytes", "offset_bytes", "size_limit_bytes"), 0
    )
    like |= dict.fromkeys(("name", "number", "scheduler", "profile", "backing_file"), "")
    like |= {"read_only": False, "direct_io": False, "partitions": {}, "kind": "dm"}
    blocks = [Block(**like, device=f"/dev/{at}", on=[f"/dev/{(at + 1) % length}"]) for at in range(length)]
    return Stack(cpus="0", controllers="", blocks=blocks, mounts=[], swaps=[], groups=[])


def test_a_stack_of_a_guests_choice_takes_a_time_that_grows_with_its_size() -> None:
    def took_s(length: int) -> float:
        stack, times = chain(length), []
        for _ in range(3):
            began = time.process_time()
            assert len(stack_svg.stack_devices(stack)) == length
            times.append(time.process_time() - began)
        return min(times)

    assert took_s(8000) < 10 * took_s(2000)


def test_keys_that_no_model_knows_are_taken_for_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = {"result": "reproduced", "what": "repro", "smaller": 3, "tests": 3, "asked": 3, "steps": 3}
    found = document(folder, failed(folder))
    (folder / "results.json").write_text(json.dumps(found | stray))
    (folder / "repro.json").write_text("{}")
    (tmp_path / "state").mkdir()
    (listed,) = runs.list_runs(folder.parent, result_reader.read_document)
    assert (listed.verdict, listed.cases) == ("FAIL", 1)
    assert said(monkeypatch, tmp_path, "report", str(folder)) == 1
    assert "expected the folder of a run of `testbed repro`" in str(said(monkeypatch, tmp_path, "bundle", str(folder)))
    (folder / "results.json").unlink()
    (folder / "repro.json").write_text(json.dumps({"verdict": "PASS"} | stray | bug(folder)))
    assert said(monkeypatch, tmp_path, "report", str(folder)) == 3
