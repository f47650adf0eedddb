"""Results that are written as they come: of runs that end early, and on a full disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.cli.run_results import writing_results
from testbed.errors import HostError, UsageError
from testbed.report import diff, formats, result_reader, results, runs
from testbed.report.comparison import SetupChange
from testbed.report.markdown import markdown
from testbed.report.partial import Partial
from testbed.report.result_writer import ResultWriter
from testbed.report.schema import Document
from testbed.scenarios.runner import Result
from testbed.scenarios.verdict import Verdict
from tests.support import junit as junit_rules
from tests.support import ktap as ktap_rules
from tests.support.run_results import document, failed, passed
from tests.support.values import APART, may_mount


def _end(ended: int, wanted: int, why: str) -> Partial:
    return Partial(ended=ended, wanted=wanted, at_most=False, what="cases", why=why)


def so_far(folder: Path, ended: list[Result], wanted: int) -> Callable[[str | None], Document]:
    def made(why: str | None) -> Document:
        end = None if why is None else _end(len(ended), wanted, why)
        return document(folder, *ended, partial=end)

    return made


def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "20260101T000000Z-abcd"
    folder.mkdir(parents=True)
    return folder


def test_each_result_is_written_before_the_next_case_starts(tmp_path: Path) -> None:
    folder, ended = run(tmp_path), list[Result]()
    with writing_results(folder, so_far(folder, ended, 2), formats.write, lambda note: None) as keeper:
        ended.append(passed(folder))
        keeper.update()
        read = results.read(str(folder), folder.parent)
        # All cases so far have passed, but that is not the run's verdict.
        assert (read.verdict, [case.verdict for case in read.scenarios]) == ("INFRA", ["PASS"])
        assert str(read.partial) == "1 of 2 cases ended; the run goes on"
        (listed,) = runs.list_runs(folder.parent, result_reader.summarize)
        assert listed.going_on and listed.partial == read.partial
        ended.append(passed(folder))
        complete, unwritten = keeper.finish()
    assert unwritten is None and complete.partial is None and results.read("last", folder.parent).verdict == "PASS"


def test_the_reason_of_an_early_end_is_in_all_reports_and_none_passes(tmp_path: Path) -> None:
    folder, notes = run(tmp_path), list[str]()
    why = "/state: cannot be written: No space left on device"
    with (
        pytest.raises(HostError),
        writing_results(folder, so_far(folder, [passed(folder)], 12), formats.write, notes.append),
    ):
        raise HostError(f"{why}\nand more lines")
    said = f"1 of 12 cases ended; {why}"
    assert notes == [f"broken off: {said}"]
    read = results.read(str(folder), folder.parent)
    assert read.verdict == "INFRA" and str(read.partial) == said
    text = markdown(read)
    assert ": INFRA, partial\n" in text and f"**Partial: {said}. Nothing is known of the others.**" in text
    assert f"Partial: {said}" in (folder / "report.html").read_text()
    junit_rules.check((folder / "junit.xml").read_text())
    assert 'tests="2" failures="0" errors="1"' in (folder / "junit.xml").read_text()
    (whole,) = ktap_rules.parse((folder / "results.ktap").read_text())
    assert whole.status == "not ok" and [(one.name, one.status) for one in whole.tests] == [
        ("gate", "ok"),
        ("the whole run", "not ok"),
    ]


def test_a_failed_run_that_ends_early_stays_failed_and_names_a_testbed_bug(tmp_path: Path) -> None:
    folder = run(tmp_path)
    ended = [passed(folder), failed(folder)]
    with (
        pytest.raises(ExceptionGroup),
        writing_results(folder, so_far(folder, ended, 3), formats.write, lambda note: None),
    ):
        raise ExceptionGroup("several", [ValueError("invalid literal"), UsageError("no")])
    read = results.read(str(folder), folder.parent)
    assert (
        read.verdict == "FAIL"
        and read.partial is not None
        and read.partial.why == "a mistake of the testbed: ValueError: invalid literal"
    )
    assert "That of these one failed stays true." in markdown(read)


def test_a_complete_and_a_partial_run_are_not_unchanged(tmp_path: Path) -> None:
    whole, part = (document(tmp_path, *[passed(tmp_path)] * 20) for _ in range(2))
    end = Partial(ended=20, wanted=40, at_most=False, what="attempts", why="interrupted by SIGINT")
    found = diff.compare(whole, part.model_copy(update={"partial": end}))
    assert found.result == diff.UNKNOWN
    ended = "20 of 40 attempts ended; interrupted by SIGINT"
    assert SetupChange(what="how far it came", before="to its end", after=ended) in found.setup


FULL = """\
import sys
from pathlib import Path
from tests.support.run_results import passed
from tests.unit.report.test_result_writer import so_far
from testbed.report import formats as artefacts
from testbed.report.result_writer import ResultWriter

folder = Path(sys.argv[1])
ended = []
keeper = ResultWriter(folder, so_far(folder, ended, 4), artefacts.write)
for number in range(3):
    ended.append(passed(folder))
    keeper.update()
    if number == 0:
        with (folder / "console.log").open("wb", buffering=0) as log:
            try:
                while True:
                    log.write(bytes(4096))
            except OSError:
                pass
print((folder / "results.json").read_text())
print("----")
keeper.end_early("this machine's disk is full")
print((folder / "results.json").read_text())
print("----")
print(*sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.skipif(
    not may_mount(), reason="a small disk is mounted in a namespace, which this machine does not let us have"
)
def test_results_are_written_even_if_the_disk_is_full(tmp_path: Path) -> None:
    words = (
        *APART,
        "sh",
        "-ec",
        f"mount -t tmpfs -o size=12m none '{tmp_path}' && exec \"$@\"",
        "sh",
        sys.executable,
        "-c",
        FULL,
    )
    done = subprocess.run([*words, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True)
    before, after, names = done.stdout.split("----\n")
    # The file has the results from before the disk was full, and at the end all of them.
    assert json.loads(before)["partial"]["ended"] == 1
    assert str(Partial(**json.loads(after)["partial"])) == "3 of 4 cases ended; this machine's disk is full"
    assert names.split() == ["console.log", "junit.xml", "report.html", "results.json", "results.ktap"]


def test_a_disk_without_space_for_the_reserve_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refused)
    keeper = ResultWriter(tmp_path, so_far(tmp_path, [passed(tmp_path)], 1), formats.write)
    assert keeper.finish()[1] is None and results.read(str(tmp_path), tmp_path).verdict == Verdict.PASS.value
