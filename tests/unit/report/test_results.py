"""Results of a run as a document, and results of earlier runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.report import formats, results
from testbed.report.schema import Spread
from testbed.scenarios.verdict import judge_pair
from tests.support.run_results import document, lost, passed
from tests.unit.report.test_tables import shown


def test_results_are_json_with_units_and_sources(tmp_path: Path) -> None:
    both = (passed(tmp_path), lost(tmp_path))
    formats.write(document(tmp_path, *both), tmp_path)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["run"] == tmp_path.name and read["verdict"] == "INFRA" and set(read["kernels"]) == {"base", "patched"}
    gate, oom = read["scenarios"]
    assert gate["verdict"] == "PASS" and gate["base"]["claim"] == "open"
    assert gate["patched"]["measures"] == {
        "disk reads": {"value": 33554432, "unit": "bytes", "source": "query-blockstats"}
    }
    assert gate["patched"]["console"] == [
        {"kind": "oom", "seconds": 1.5, "text": "dd invoked oom-killer", "expected": True}
    ]
    assert oom["verdict"] == "INFRA" and oom["base"]["claim"] is None and oom["base"]["measures"] == {}


def test_attempts_become_one_case_with_gravest_verdict_medians_and_pass_rate(tmp_path: Path) -> None:
    good, bad = passed(tmp_path), passed(tmp_path)
    bad = replace(bad, attempt=2, sides={**bad.sides, "patched": bad.sides["base"]})
    bad = replace(bad, judgement=judge_pair(bad.sides["base"].outcome, bad.sides["patched"].outcome))
    (gate,) = document(tmp_path, good, bad).scenarios
    assert gate.verdict == "FAIL" and gate.pass_rate == 0.5 and gate.attempts is not None and len(gate.attempts) == 2
    assert gate.spread is not None
    assert gate.spread["base"]["disk reads"] == Spread(min=33554432, median=33554432, max=33554432)
    assert "1 of 2" in shown((good, bad))


@pytest.mark.parametrize("said", [None, "{", "[]", '{"version": 2}'])
def test_a_run_without_valid_results_is_an_error(said: str | None, tmp_path: Path) -> None:
    if said is not None:
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "results.json").write_text(said)
    with pytest.raises(
        UsageError,
        match="run 'r': " if said is None else r"results\.json: expected (JSON|the results of a run, version 1): ",
    ):
        results.read("r", tmp_path)
    if said is None:
        with pytest.raises(UsageError, match="there is none"):
            results.read("last", tmp_path)
