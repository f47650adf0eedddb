"""Run folders, which people send each other: results, and samples beside them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from testbed.guest import timeline
from testbed.guest.metrics import cgroup_sampler, disk_sampler
from testbed.host import eventlog
from testbed.report import diff, junit, markdown, plots, result_reader, results, runs
from testbed.report import ktap as own_ktap
from testbed.report.bugs import files, view
from testbed.report.bugs.schema import MODELS, Repro, Suite
from tests.fuzz.readers import place
from tests.support import ktap


def scenarios(data: bytes) -> None:
    """Read `results.json` of a run of scenarios, and write it in the text formats."""
    found = results.read(str(_run(data, "results.json")), Path("/nowhere"))
    markdown.markdown(found)
    junit.junit(found)
    own_ktap.ktap(found)
    diff.text(diff.compare(found, found))


def bugs(data: bytes) -> None:
    """Read results of `repro`, `reduce`, `bisect` and `suite`: the document says which."""
    name = next((name for name in MODELS if f'"{name.removesuffix(".json")}"'.encode() in data), "repro.json")
    found = files.read(_run(data, name))
    assert found is not None
    files.markdown(found)
    if isinstance(found, Repro | Suite):
        ktap.parse(own_ktap.ktap(view.as_results_document(found)))


def ktap_of(data: bytes) -> None:
    """Write results as KTAP, which a strict parser must accept whatever the guests' texts are."""
    ktap.parse(own_ktap.ktap(results.read(str(_run(data, "results.json")), Path("/nowhere"))))


# A key of each kind of results.
_KEYS = {
    "results.json": "scenarios",
    "repro.json": "kernels",
    "reduce.json": "steps",
    "bisect.json": "asked",
    "suite.json": "tests",
}


def listed(data: bytes) -> None:
    """List a run as `testbed runs` does, by either kind of results or by its log."""
    name = next((name for name, key in _KEYS.items() if f'"{key}"'.encode() in data), eventlog.FILE)
    runs.list_runs(_run(data, name).parent, result_reader.summarize)


_RECORDED = {b'"disks"': disk_sampler.LOG, b'"groups"': cgroup_sampler.LOG, b"": timeline.LOG}


def samples(data: bytes) -> None:
    """Plot samples of a guest's disks or cgroups, or its timeline."""
    name = next(name for of_it, name in _RECORDED.items() if of_it in data)
    recording = plots.read_recording(_folder(data, name).parent, "evidence", 100)
    json.dumps([asdict(plot) for plot in recording.plots], allow_nan=False)


def _run(data: bytes, name: str) -> Path:
    """Make a run's folder with one file."""
    return _folder(data, name, "runs/20260101T000000Z-abcd")


def _folder(data: bytes, name: str, folder: str = "evidence") -> Path:
    path = place.file(data, f"{folder}/{name}")
    for other in path.parent.iterdir():
        if other.name != name:
            other.unlink()
    return path.parent
