"""Made-up results of runs, for the tests of reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from testbed.guest.channels.kernel_log import Finding, Kind
from testbed.report import results
from testbed.report.fields import DocumentModel
from testbed.report.partial import Partial
from testbed.report.results import RunRecord
from testbed.report.schema import Document
from testbed.scenarios.catalogue import cases
from testbed.scenarios.runner import Result, Side
from testbed.scenarios.verdict import (
    Balance,
    Control,
    Evidence,
    Gap,
    Judgement,
    Lost,
    Measure,
    Skipped,
    Verdict,
    judge_pair,
)
from testbed.store.image import Image
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import Series
from testbed.topology.disks import make_disk
from testbed.topology.model import GuestModel
from testbed.units import GIB
from tests.support.values import host


def kernel(name: str) -> KernelFiles:
    return KernelFiles(
        name=name,
        series=Series.AFTER,
        release=f"{name}-cloud",
        origin="o",
        sha256="s",
        folder=Path("/k"),
        early_modules=(),
        has_modules=True,
    )


M = TypeVar("M")
MISSED = ("when mark never: unplug data",)
KERNELS = {"base": kernel("5.10"), "patched": kernel("6.1")}


def side(claim: Gap, folder: Path) -> Side:
    evidence = Evidence(
        claim=claim,
        reason="so",
        measures=(Measure(name="disk reads", value=33554432, unit="bytes", source="query-blockstats"),),
        controls=(Control(name="c", expected="x", got="x", holds=True),),
    )
    finding = Finding(kind=Kind.OOM, seconds=1.5, text="dd invoked oom-killer")
    return Side(
        outcome=evidence,
        findings=(finding,),
        logs=folder / "guests" / "g",
        took_s=1.0,
        ready_after_s=0.5,
        missed=MISSED,
    )


def passed(folder: Path) -> Result:
    sides = {"base": side(Gap.OPEN, folder), "patched": side(Gap.CLOSED, folder)}
    return Result(
        case=cases()["gate"],
        attempt=1,
        sides=sides,
        judgement=judge_pair(sides["base"].outcome, sides["patched"].outcome),
    )


def lost(folder: Path) -> Result:
    outcome = Lost(why="guest g0: ready: panic [red]on[/red] its console\n    | \x1b[2J")
    gone = Side(outcome=outcome, findings=(), logs=folder / "guests" / "h", took_s=1.0, ready_after_s=0.0)
    return Result(
        case=cases()["oom-tmpfs"],
        attempt=1,
        sides={"base": gone, "patched": gone},
        judgement=Judgement(verdict=Verdict.INFRA, reason=outcome.why),
    )


def skipped(folder: Path) -> Result:
    outcome = Skipped(why="the topology has no nvme disk # of 512MB")
    none = Side(outcome=outcome, findings=(), logs=folder / "guests" / "s", took_s=0, ready_after_s=0)
    judgement = Judgement(verdict=Verdict.SKIP, reason=f"base: {outcome.why}")
    return Result(case=cases()["read/nvme/ext4"], attempt=1, sides={"base": none, "patched": none}, judgement=judgement)


def failed(folder: Path) -> Result:
    """The patched kernel shows the gap too, and two counts of the same bytes differ."""
    open_ = side(Gap.OPEN, folder)
    assert isinstance(open_.outcome, Evidence)
    balance = Balance(what="rbytes of disk data", accounted=90, real=100)
    patched = replace(open_, outcome=replace(open_.outcome, balances=(balance,)))
    judgement = judge_pair(open_.outcome, patched.outcome)
    return Result(
        case=next(case for name, case in cases().items() if name.startswith("write-xfs")),
        attempt=1,
        sides={"base": open_, "patched": patched},
        judgement=judgement,
    )


MODEL = GuestModel(disks={"data": make_disk(type="nvme", size=GIB)})


def record(folder: Path, *of: Result, model: GuestModel | None = MODEL, partial: Partial | None = None) -> RunRecord:
    """A run with these results."""
    return RunRecord(
        folder=folder,
        command=["testbed", "compare"],
        host=host(),
        image=Image(name="bookworm", sha256="i" * 64, folder=Path("/i")),
        kernels=KERNELS,
        results=of,
        took_s=3.0,
        model=model,
        qemu_sha256="q" * 64,
        partial=partial,
    )


def document(folder: Path, *of: Result, model: GuestModel | None = MODEL, partial: Partial | None = None) -> Document:
    """The document that is written as results.json of a run with these results."""
    return results.document(record(folder, *of, model=model, partial=partial))


def plain(document: DocumentModel) -> Any:
    """The same as `json.loads` reads it, to be changed."""
    return json.loads(json.dumps(document.as_json()))


def changed(found: M, path: str, value: object) -> M:
    """A copy with another value at a dotted path, which is not validated."""
    name, _, rest = path.partition(".")
    if isinstance(found, DocumentModel):
        inner = value if not rest else changed(getattr(found, name), rest, value)
        return found.model_copy(update={name: inner})
    if isinstance(found, dict):
        return cast(M, found | {name: value if not rest else changed(found[name], rest, value)})
    assert isinstance(found, list | tuple)
    parts = list(found)
    parts[int(name)] = value if not rest else changed(parts[int(name)], rest, value)
    return cast(M, parts)


def alone(result: Result) -> Result:
    """The same with each kernel judged alone."""
    judgements = {name: Judgement(verdict=Verdict.PASS, reason=f"as {name}") for name in result.sides}
    return replace(result, by_kernel=judgements)
