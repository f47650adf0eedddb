"""The bytes of results.json, repro.json, reduce.json, bisect.json and suite.json, which other programs read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from testbed import __version__
from testbed.guest.setup.survey import Block, Group, Mount, Survey, SurveyError, Swap
from testbed.report import results
from testbed.report.bugs import files
from testbed.report.partial import Partial
from testbed.scenarios.runner import Result
from testbed.scenarios.verdict import Balance, Evidence
from tests.support.bug_runs import documents
from tests.support.run_results import alone, document, failed, lost, passed, skipped

RECORDED = Path(__file__).parent / "recorded"
FOLDER = Path("/runs/20260101T000000Z-abcd")
LOOP = Block(
    kind="loop",
    name="image",
    device="/dev/loop0",
    number="7:0",
    size_bytes=1 << 20,
    read_only=False,
    logical_block_size=512,
    read_ahead_bytes=131072,
    scheduler="none",
    profile="",
    backing_file="/mnt/file",
    direct_io=True,
    offset_bytes=0,
    size_limit_bytes=0,
    partitions={"/dev/loop0p1": 4096},
    on=("/dev/vda",),
)
SURVEY = Survey(
    cpus="0-1",
    controllers="memory io",
    blocks=(LOOP,),
    mounts=(Mount(mount_point="/mnt", type="ext4", source="/dev/vda", options="rw"),),
    swaps=(Swap(on="/dev/vdb", size_bytes=4096),),
    groups=(Group(path="/a", limits={"memory.max": ("1048576",)}),),
    more_groups=3,
)
PARTIAL = Partial(ended=1, wanted=12, at_most=True, what="tries", why="interrupted by SIGINT")


def plain(result: Result) -> Result:
    """The same of a scenario with short texts, so that a better wording of a scenario changes no recorded file."""
    scenario = replace(result.case.scenario, claim="c", source="s", predicted_base="b", predicted_patched="p")
    return replace(result, case=replace(result.case, scenario=scenario))


def measured(result: Result, attempt: int, value: float) -> Result:
    """An attempt whose patched kernel has this value, a survey of its guest, and two counts that differ."""
    base, patched = result.sides["base"], result.sides["patched"]
    assert isinstance(patched.outcome, Evidence)
    measures = tuple(replace(measure, value=value) for measure in patched.outcome.measures)
    balance = Balance(what="rbytes", accounted=90, real=100)
    outcome = replace(patched.outcome, measures=measures, balances=(balance,))
    sides = {
        "base": replace(base, stack=SurveyError(why="the guest did not answer")),
        "patched": replace(patched, outcome=outcome, stack=SURVEY),
    }
    return replace(result, attempt=attempt, sides=sides)


def texts() -> Iterator[tuple[str, str]]:
    """Each file's text, by the name under which it is recorded."""
    every = (plain(passed(FOLDER)), plain(skipped(FOLDER)), plain(failed(FOLDER)), plain(lost(FOLDER)))
    attempts = tuple(measured(every[0], number, value) for number, value in ((1, 3), (2, 4.5), (3, 1e6)))
    yield "results", results.text(document(FOLDER, *every))
    yield "results-attempts", results.text(document(FOLDER, *attempts))
    yield "results-alone", results.text(document(FOLDER, alone(every[0])))
    yield "results-partial", results.text(document(FOLDER, every[0], partial=PARTIAL))
    yield "results-empty", results.text(document(FOLDER))
    for what, of_bug in documents(FOLDER).items():
        yield what, files.FORMATS["json"](of_bug, FOLDER)
    for what, of_bug in documents(FOLDER, PARTIAL).items():
        yield f"{what}-partial", files.FORMATS["json"](of_bug, FOLDER)


# Reasons and the testbed's version may change; the keys of a file, their order and other values may not.
_REASON = re.compile(r'"reason": ".*"')
TEXTS = {
    name: _REASON.sub('"reason": "..."', text.replace(json.dumps(__version__), '"VERSION"')) for name, text in texts()
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_bytes_of_a_result_file_do_not_change(name: str) -> None:
    assert TEXTS[name] == (RECORDED / f"{name}.json").read_text()


def test_every_recorded_file_is_compared() -> None:
    assert {file.stem for file in RECORDED.iterdir()} == TEXTS.keys()
