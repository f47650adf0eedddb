"""The catalogue of errors, and what a run writes down of what it did."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import cli, errors
from testbed.errors import GuestLost, Problem, TestbedError, TopologyError
from testbed.host import eventlog
from testbed.report import runs
from testbed.report.docs import errors_markdown
from tests.support.command import testbed


def test_docs_errors_is_generated_from_the_classes() -> None:
    kept = Path(__file__).parents[2] / "docs" / "errors.md"
    assert kept.read_text() == errors_markdown(), "./tb errors --markdown >docs/errors.md"


def test_each_class_has_its_own_code_and_tells_who_acts_and_how() -> None:
    for kind in errors.error_classes():
        if kind is not TestbedError:
            assert {"code", "who", "act"} <= vars(kind).keys(), f"{kind.__name__} has another class's"
    codes = [kind.code for kind in errors.error_classes()]
    assert len(set(codes)) == len(codes) and all(len(code) == 5 and code.startswith("TB") for code in codes)


def test_messages_keep_their_text() -> None:
    problem = Problem(file="a.yaml", line=1, column=2, path="guests", message="expected one")
    assert (
        str(TopologyError((problem, problem))) == "a.yaml:1:2: guests: expected one\na.yaml:1:2: guests: expected one"
    )
    assert str(GuestLost("g0", "ready", "it ended", ("one", "two"))).splitlines()[-1] == "    | two"


@pytest.mark.slow
def test_debug_prints_the_code_a_traceback_and_the_log(tmp_path: Path) -> None:
    plain = testbed(tmp_path, "ssh", "nobody")
    assert plain.returncode == 2 and plain.stderr.count("\n") == 1 and "TB100" not in plain.stderr
    told = testbed(tmp_path, "--debug", "ssh", "nobody")
    assert told.returncode == 2 and "Traceback" in told.stderr and "TB100: see docs/errors.md" in told.stderr
    assert told.stderr.endswith(plain.stderr)
    line = testbed(tmp_path, "run", "nothing", "--json").stderr.splitlines()[-1]
    assert json.loads(line) | {"text": ""} == {"event": "error", "code": "TB100", "error": "UsageError", "text": ""}
    assert testbed(tmp_path, "errors", "tb410").stdout == testbed(tmp_path, "errors", "TB410").stdout
    assert testbed(tmp_path, "errors", "TB410").stdout.startswith("TB410\tGuestLost\t")
    assert "expected one of TB000" in testbed(tmp_path, "errors", "TB999").stderr


def test_an_internal_error_is_no_verdict(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []

    def broken() -> None:
        raise LookupError("of ours")

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # they come back, whatever takes their place
    monkeypatch.setattr(os, "_exit", ended.append)
    cli.main(broken)
    said = capfd.readouterr().err
    assert ended == [2] and "LookupError: of ours" in said and "a mistake of the testbed" in said


# Strikes as soon as something asks for a module.
STRUCK = """\
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)
MODULE, sys.argv = sys.argv[1], ["testbed", *sys.argv[2:]]
sys.meta_path.insert(0, Finder())
runpy.run_module("testbed", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "verb"),
    [
        ("typer", "scenarios"),
        ("testbed.cli.reference", "scenarios"),
        ("testbed.cli.vms", "ps"),
        ("json.decoder", "ps"),
        ("asyncio", "run"),
    ],
)
def test_an_interrupt_during_imports_prints_no_traceback(tmp_path: Path, module: str, verb: str) -> None:
    env = {**os.environ, "TESTBED_CACHE": str(tmp_path / "c"), "TESTBED_STATE": str(tmp_path / "s")}
    done = subprocess.run(
        [sys.executable, "-c", STRUCK, module, verb], env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "") and done.stderr in ("", "testbed: stopped by SIGINT\n")


def test_the_log_of_a_run_has_both_clocks_and_its_guest(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match="it broke"), runs.running(tmp_path, ["tb"]):
        eventlog.log_event("SSH answered", guest="g0", logs="oom-tmpfs-base", stage="ready")
        eventlog.log_event("image made")
        raise TestbedError("it broke")
    eventlog.log_event("of nobody's run")
    begun, first, second, last = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert begun["event"] == "command: tb"
    assert first.keys() == {"time", "monotonic_s", "level", "guest", "logs", "stage", "event"}
    assert (first["guest"], first["logs"], first["stage"]) == ("g0", "oom-tmpfs-base", "ready")
    assert (first["event"], first["level"]) == ("SSH answered", "info")
    assert second["monotonic_s"] >= first["monotonic_s"] and second["time"] >= first["time"] and "guest" not in second
    assert (last["level"], last["event"]) == ("error", "TestbedError: it broke")


def test_the_log_on_a_terminal_has_no_control_sequences() -> None:
    stream = io.StringIO()
    handler = eventlog._TextHandler(stream)
    eventlog._LOGGER.addHandler(handler)
    try:
        eventlog.log_event("\x1b[2Jowned", guest="g0", stage="ready")
    finally:
        eventlog._LOGGER.removeHandler(handler)
    assert stream.getvalue().startswith("debug: ") and stream.getvalue().endswith(" g0: ready: owned\n")


@pytest.mark.parametrize("kind", errors.error_classes())
def test_errors_of_other_processes_keep_their_class(kind: type[TestbedError]) -> None:
    found = errors.from_code("it \x1b[2Jbroke", kind.code)
    assert type(found) is kind and str(found) == "it broke"
    assert type(errors.from_code("of another version", "TB999")) is TestbedError
