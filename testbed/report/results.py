"""A run's results as files: `results.json`, and the folder that holds it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testbed import __version__
from testbed.errors import UsageError
from testbed.guest.channels.kernel_log import Kind
from testbed.guest.setup.survey import Survey, SurveyError
from testbed.host import untrusted_files
from testbed.host.facts import Host
from testbed.report import result_reader
from testbed.report import runs as store
from testbed.report.partial import Partial
from testbed.scenarios.runner import Result, Side
from testbed.scenarios.verdict import Evidence, Verdict
from testbed.scenarios.verdict import worst as gravest
from testbed.store.image import Image
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology.model import GuestModel, Topology


def document(
    folder: Path,
    verdict: Verdict,
    command: list[str],
    host: Host,
    image: Image,
    kernels: dict[str, KernelFiles],
    results: tuple[Result, ...],
    took_s: float,
    *,
    model: GuestModel | None = None,
    unused: tuple[str, ...] = (),
    qemu_sha256: str = "",
    partial: Partial | None = None,
) -> dict[str, Any]:
    """What `results.json` says; `took_s`: of all scenarios, beside which `guest_seconds` is the sum of their guests' times.

    `model`: the topology's guest as scenarios had it; `unused`: the places of its file that they did not use;
    `qemu_sha256`: of QEMU's program; `partial`: how far the run came, unless it is complete.
    """
    topology = Topology(version=1, guests={"g0": model}) if model is not None else None
    return {
        "version": 1,
        "testbed": __version__,
        "run": folder.name,
        "verdict": verdict.value,
        "partial": None if partial is None else asdict(partial),
        "command": command,
        "host": {
            "kernel": host.kernel,
            "cores": host.cores,
            "memory_bytes": host.memory_bytes,
            "qemu": host.qemu.version,
            "qemu_sha256": qemu_sha256,
            "accelerator": host.accelerator,
        },
        "image": {"name": image.name, "sha256": image.sha256},
        "kernels": {
            side: {
                "name": kernel.name,
                "release": kernel.release,
                "origin": kernel.origin,
                "sha256": kernel.sha256,
                "series": kernel.series.value,
            }
            for side, kernel in kernels.items()
        },
        "topology": topology.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if topology is not None
        else None,
        "topology_unused": list(unused),
        "took_s": round(took_s, 3),
        "guest_seconds": round(sum(side.took_s for result in results for side in result.sides.values()), 3),
        "scenarios": [_case(attempts, folder) for attempts in by_case(results)],
    }


def by_case(results: tuple[Result, ...]) -> list[tuple[Result, ...]]:
    """The attempts of each case, in the order of the results."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.case.name, []).append(result)
    return [tuple(attempts) for attempts in found.values()]


def worst_attempt(attempts: tuple[Result, ...]) -> Result:
    """The attempt whose judgement is the case's."""
    worst = gravest(tuple(result.judgement for result in attempts))
    return next(result for result in attempts if result.judgement is worst)


def spread(attempts: tuple[Result, ...], side: str) -> dict[str, dict[str, float]]:
    """Least, median and greatest value of each measure on one side, over the attempts that have it."""
    values: dict[str, list[float]] = {}
    for result in attempts:
        outcome = result.sides[side].outcome
        for measure in outcome.measures if isinstance(outcome, Evidence) else ():
            values.setdefault(measure.name, []).append(measure.value)
    return {
        name: {"min": min(seen), "median": statistics.median(seen), "max": max(seen)} for name, seen in values.items()
    }


def _case(attempts: tuple[Result, ...], folder: Path) -> dict[str, Any]:
    told = worst_attempt(attempts)
    scenario = told.case.scenario
    said: dict[str, Any] = {
        "name": told.case.name,
        "scenario": scenario.name,
        "claim": scenario.claim,
        "patches": list(scenario.patches),
        "predicted": {"base": scenario.predicted_base, "patched": scenario.predicted_patched},
        "source": scenario.source,
        **_attempt(told, folder),
    }
    if len(attempts) > 1:
        passed = sum(result.judgement.verdict is Verdict.PASS for result in attempts)
        said |= {
            "pass_rate": passed / len(attempts),
            "spread": {side: spread(attempts, side) for side in told.sides},
            "attempts": [_attempt(result, folder) for result in attempts],
        }
    return said


def _attempt(result: Result, folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = {"verdict": result.judgement.verdict.value, "reason": result.judgement.reason}
    for side, done in result.sides.items():
        said[side] = _side(done, folder, result.case.scenario.expected_log)
        if side in result.by_kernel:
            said[side] |= {"verdict": result.by_kernel[side].verdict.value, "judgement": result.by_kernel[side].reason}
    return said


def _side(side: Side, folder: Path, expected_log: frozenset[Kind]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "took_s": round(side.took_s, 3),
        "guest_ready_after_s": round(side.ready_after_s, 3),
        "evidence": str(side.logs.relative_to(folder)),
        "timeline_missed": list(side.missed),
        "stack": asdict(side.stack) if isinstance(side.stack, Survey) else None,
        "stack_unread": side.stack.why if isinstance(side.stack, SurveyError) else "",
        "console": [
            asdict(finding) | {"kind": finding.kind.value, "expected": finding.kind in expected_log}
            for finding in side.findings
        ],
    }
    if isinstance(side.outcome, Evidence):
        evidence = side.outcome
        said |= {
            "claim": evidence.claim.name.lower(),
            "reason": evidence.reason,
            "measures": {m.name: {"value": m.value, "unit": m.unit, "source": m.source} for m in evidence.measures},
            "controls": [asdict(control) for control in evidence.controls],
            "balances": [
                asdict(balance) | {"difference": balance.accounted - balance.real, "share": round(balance.share, 6)}
                for balance in evidence.balances
            ],
        }
    else:
        said |= {"claim": None, "reason": side.outcome.why, "measures": {}, "controls": [], "balances": []}
    return said


def text(document: dict[str, Any]) -> str:
    """What the file holds."""
    return json.dumps(document, indent=2) + "\n"


def results_file(document: Mapping[str, Any]) -> str:
    """What the file of a run's results is called: those of scenarios do not name their verb."""
    return f"{document.get('what', 'results')}.json"


def locate(run: str, runs: Path) -> Path:
    """The folder of an earlier run: its name among `runs`, a path to it, or `last`.

    :raise UsageError: there is none; for `last`, none with results.
    """
    if run != "last":
        if "\0" in run:
            raise UsageError(f"run {run!r}: expected a run's name or folder, or last")
        folder = Path(run) if store.results(Path(run)) else runs / run
        if not folder.is_dir():
            raise UsageError(
                f"run {run!r}: expected a run's name or folder, or last; `testbed runs` lists those in {runs}"
            )
        return folder
    newest = max(
        (runs / name for name in untrusted_files.names_below(runs) if store.results(runs / name)), default=None
    )
    if newest is None:
        raise UsageError(f"run last: expected a run with results in {runs}, there is none")
    return newest


def read(run: str, runs: Path) -> dict[str, Any]:
    """The results of an earlier run of scenarios, named as `locate` does.

    :raise UsageError: there is no such run, or it has no results.
    """
    folder = locate(run, runs)
    name, found = store.results(folder), result_reader.read_document(folder)
    if found is None:
        raise UsageError(f"run {run!r}: expected results.json in {folder}, there is none")
    if name != "results.json":
        raise UsageError(f"run {run!r}: expected a run of scenarios, got one of `{Path(str(name)).stem}`: {folder}")
    return found
