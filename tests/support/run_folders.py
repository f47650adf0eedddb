"""Folders of runs as a stranger may have filled them, and verbs that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.cli.app import app
from testbed.errors import TestbedError
from tests.support.bug_runs import documents
from tests.support.run_results import document, passed, plain

SECRET = "root:$6$secret"
# Names that would be lines of their own in a report.
FORGED = "name\n## Changed\n| gate | PASS |\nok 1 all"


def run_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> object:
    """Run a verb, and return its exit code, or the error that it raises."""
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"TESTBED_{name}", str(tmp_path / name.lower()))
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    for module in ("reports", "bundle", "cache", "run"):
        cli.load(module)
    try:
        app(list(words), standalone_mode=False)
    except SystemExit as exit_:
        return exit_.code
    except TestbedError as error:
        return error
    return 0


def scenario_results(folder: Path) -> Any:
    """Results of a run of scenarios, as JSON."""
    return plain(document(folder, passed(folder)))


def bug_results(folder: Path, what: str = "repro") -> Any:
    """Results of a run of a bug or of a suite, as JSON."""
    return plain(documents(folder)[what])


def hit_results(folder: Path) -> Any:
    """The same with the logs of its first try in `guests/g`."""
    results = bug_results(folder)
    results["kernels"][0]["attempts"][0]["evidence"] = "g"
    return results


def with_value(results: Any, path: str, value: object) -> Any:
    """Set the value at a dotted path."""
    *above, last = path.split(".")
    place = results
    for step in above:
        place = place[int(step) if step.isdigit() else step]
    place[int(last) if last.isdigit() else last] = value
    return results
