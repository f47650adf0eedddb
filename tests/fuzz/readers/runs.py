"""Folders of runs, which people send each other: results, and what was recorded beside them."""

from __future__ import annotations

import json
from pathlib import Path

from testbed import group_sampler, player, sampler
from testbed.report import bug_files, bug_view, diff, junit, markdown, reading, results, series
from testbed.report import ktap as own_ktap
from testbed.report.bug_schema import MODELS
from testbed.store import runs
from tests import ktap
from tests.fuzz.readers import place


def scenarios(data: bytes) -> None:
    """`results.json` of a run of scenarios, in the formats that hold text alone."""
    found = results.read(str(_run(data, "results.json")), Path("/nowhere"))
    markdown.markdown(found)
    junit.junit(found)
    own_ktap.ktap(found)
    diff.text(diff.compare(found, found))


def bugs(data: bytes) -> None:
    """Results of `repro`, `reduce`, `bisect` and `suite`: the document says which."""
    name = next((name for name in MODELS if f'"{name.removesuffix(".json")}"'.encode() in data), "repro.json")
    found = bug_files.read(_run(data, name))
    assert found is not None
    bug_files.markdown(found)
    if found["what"] in ("repro", "suite"):
        ktap.parse(own_ktap.ktap(bug_view.as_results(found)))


def ktap_of(data: bytes) -> None:
    """Results as KTAP, which a strict reader takes whatever guests have said."""
    ktap.parse(own_ktap.ktap(results.read(str(_run(data, "results.json")), Path("/nowhere"))))


def listed(data: bytes) -> None:
    """A run as `testbed runs` lists it, by either kind of results and by its log."""
    for name in ("results.json", "repro.json", "log.jsonl"):
        runs.every(_run(data, name).parent, reading.document)


def samples(data: bytes) -> None:
    """What was sampled of a guest, as plots: the same lines as those of disks, of groups and of the timeline."""
    for name in (sampler.LOG, group_sampler.LOG, player.LOG):
        folder = place.file(data, f"evidence/{name}").parent.parent
    json.dumps(series.read(folder, "evidence", 100).plots, allow_nan=False)


def _run(data: bytes, name: str) -> Path:
    """A run's folder with one file."""
    folder = place.file(b"", "runs/20260101T000000Z-abcd/x").parent
    for path in folder.iterdir():
        path.unlink()
    (folder / name).write_bytes(data)
    return folder
