"""A run's results as files: `results.json`, and the folder that holds it."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.host import Host
from testbed.runner import Result, Side
from testbed.store.image import Image
from testbed.store.kernel_files import KernelFiles
from testbed.verdict import Evidence, Verdict


def new_run_folder(runs: Path) -> Path:
    """A new folder for one run, named by its time.

    :raise HostError: it cannot be made.
    """
    folder = runs / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise HostError(f"{folder}: cannot be made: {error.strerror}; name another place with TESTBED_STATE") from error
    return folder


def document(
    folder: Path,
    verdict: Verdict,
    command: list[str],
    host: Host,
    image: Image,
    kernels: dict[str, KernelFiles],
    results: tuple[Result, ...],
) -> dict[str, Any]:
    """What `results.json` says."""
    return {
        "version": 1,
        "run": folder.name,
        "verdict": verdict.value,
        "command": command,
        "host": {
            "kernel": host.kernel,
            "cores": host.cores,
            "memory_bytes": host.memory_bytes,
            "qemu": host.qemu.version,
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
        "scenarios": [_scenario(result, folder) for result in results],
    }


def _scenario(result: Result, folder: Path) -> dict[str, Any]:
    scenario = result.scenario
    return {
        "name": scenario.name,
        "verdict": result.judgement.verdict.value,
        "reason": result.judgement.reason,
        "claim": scenario.claim,
        "patches": list(scenario.patches),
        "predicted": {"base": scenario.predicted_base, "patched": scenario.predicted_patched},
        "source": scenario.source,
        **{side: _side(done, folder) for side, done in result.sides.items()},
    }


def _side(side: Side, folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = {
        "took_s": round(side.took_s, 3),
        "guest_ready_after_s": round(side.ready_after_s, 3),
        "evidence": str(side.evidence.relative_to(folder)),
        "console": [asdict(finding) | {"kind": finding.kind.value} for finding in side.findings],
    }
    if isinstance(side.outcome, Evidence):
        evidence = side.outcome
        said |= {
            "claim": evidence.claim.name.lower(),
            "reason": evidence.reason,
            "measures": {m.name: {"value": m.value, "unit": m.unit, "source": m.source} for m in evidence.measures},
            "controls": [asdict(control) for control in evidence.controls],
        }
    else:
        said |= {"claim": None, "reason": side.outcome.why, "measures": {}, "controls": []}
    return said


def write(document: dict[str, Any], folder: Path) -> None:
    """:raise HostError: the disk is full or the folder is gone."""
    path = folder / "results.json"
    try:
        path.write_text(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {error.strerror}") from error
