"""Folders of runs, which people send each other: results, and what was recorded beside them."""

from __future__ import annotations

import json
from pathlib import Path

from testbed import group_sampler, journal, player, sampler
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
    """A run as `testbed runs` lists it, by either kind of results or by its log."""
    name = next((name for name, of_it in runs.RESULTS.items() if f'"{of_it}"'.encode() in data), journal.FILE)
    runs.every(_run(data, name).parent, reading.document)


_RECORDED = {b'"disks"': sampler.LOG, b'"groups"': group_sampler.LOG, b"": player.LOG}


def samples(data: bytes) -> None:
    """What was sampled of a guest's disks or groups, or its timeline, as plots."""
    name = next(name for of_it, name in _RECORDED.items() if of_it in data)
    json.dumps(series.read(_folder(data, name).parent, "evidence", 100).plots, allow_nan=False)


def _run(data: bytes, name: str) -> Path:
    """A run's folder with one file."""
    return _folder(data, name, "runs/20260101T000000Z-abcd")


def _folder(data: bytes, name: str, folder: str = "evidence") -> Path:
    path = place.file(data, f"{folder}/{name}")
    for other in path.parent.iterdir():
        if other.name != name:
            other.unlink()
    return path.parent
