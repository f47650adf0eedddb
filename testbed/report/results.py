"""Makes `results.json` of a run of scenarios, and finds the results of earlier runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from testbed import __version__
from testbed.errors import UsageError
from testbed.guest.channels.kernel_log import Kind
from testbed.guest.setup.survey import Survey, SurveyError
from testbed.host import untrusted_files
from testbed.host.facts import Host
from testbed.report import result_reader, runs
from testbed.report.fields import DocumentModel
from testbed.report.partial import Partial
from testbed.report.schema import (
    Attempt,
    Balance,
    Case,
    Control,
    Document,
    HostFacts,
    ImageFacts,
    Kernel,
    Line,
    Measure,
    Predicted,
    Side,
    Spread,
)
from testbed.report.stack_model import Block, Group, Mount, Stack, Swap
from testbed.scenarios import runner, verdict
from testbed.scenarios.runner import Result
from testbed.scenarios.verdict import Evidence, Judgement, Verdict, overall_verdict
from testbed.store.image import Image
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology.model import GuestModel, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run of scenarios, complete or not: what it ran on, and its results so far.

    `took_s`: of all scenarios together. `model`: the guest of the topology, as scenarios got it; `unused`: places of
    its file that they did not use. `qemu_sha256`: of QEMU's program. `partial`: how far the run came; None for a
    complete one.
    """

    folder: Path
    command: Sequence[str]
    host: Host
    image: Image
    kernels: Mapping[str, KernelFiles]
    results: tuple[Result, ...]
    took_s: float
    model: GuestModel | None = None
    unused: tuple[str, ...] = ()
    qemu_sha256: str = ""
    partial: Partial | None = None

    @property
    def verdict(self) -> Verdict:
        verdicts = tuple(result.judgement.verdict for result in self.results)
        return overall_verdict(verdicts, partial=self.partial is not None)


def document(run: RunRecord) -> Document:
    """Make the document that is written as `results.json`."""
    guest_seconds = sum(side.took_s for result in run.results for side in result.sides.values())
    return Document.model_construct(
        version=1,
        testbed=__version__,
        run=run.folder.name,
        verdict=run.verdict.value,
        partial=run.partial,
        command=list(run.command),
        host=_host(run),
        image=ImageFacts.model_construct(name=run.image.name, sha256=run.image.sha256),
        kernels={side: _kernel(kernel) for side, kernel in run.kernels.items()},
        topology=_topology(run.model),
        topology_unused=list(run.unused),
        took_s=round(run.took_s, 3),
        guest_seconds=round(guest_seconds, 3),
        scenarios=[_case(attempts, run.folder) for attempts in by_case(run.results)],
    )


def _host(run: RunRecord) -> HostFacts:
    host = run.host
    return HostFacts.model_construct(
        kernel=host.kernel,
        cores=host.cores,
        memory_bytes=host.memory_bytes,
        qemu=host.qemu.version,
        qemu_sha256=run.qemu_sha256,
        accelerator="kvm" if host.kvm.works else "tcg",
    )


def _kernel(kernel: KernelFiles) -> Kernel:
    return Kernel.model_construct(
        name=kernel.name,
        release=kernel.release,
        origin=kernel.origin,
        sha256=kernel.sha256,
        series=kernel.series.value,
    )


def _topology(model: GuestModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    topology = Topology(version=1, guests={"g0": model})
    return topology.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def by_case(results: tuple[Result, ...]) -> list[tuple[Result, ...]]:
    """Group results into the attempts of each case, in the order of the results."""
    attempts: dict[str, list[Result]] = {}
    for result in results:
        attempts.setdefault(result.case.name, []).append(result)
    return [tuple(of_case) for of_case in attempts.values()]


def worst_attempt(attempts: tuple[Result, ...]) -> Result:
    """Return the attempt with the gravest judgement, which is the case's."""
    worst = verdict.worst(tuple(result.judgement for result in attempts))
    return next(result for result in attempts if result.judgement is worst)


def spread(attempts: tuple[Result, ...], side: str) -> dict[str, Spread]:
    """Return the least, median and greatest value of each measure on one side, over the attempts that have it."""
    values: dict[str, list[float]] = {}
    for result in attempts:
        outcome = result.sides[side].outcome
        for measure in outcome.measures if isinstance(outcome, Evidence) else ():
            values.setdefault(measure.name, []).append(measure.value)
    return {
        name: Spread.model_construct(min=min(numbers), median=statistics.median(numbers), max=max(numbers))
        for name, numbers in values.items()
    }


def _case(attempts: tuple[Result, ...], folder: Path) -> Case:
    worst = worst_attempt(attempts)
    scenario = worst.case.scenario
    repeated: dict[str, Any] = {}
    if len(attempts) > 1:
        passed = sum(result.judgement.verdict is Verdict.PASS for result in attempts)
        repeated = {
            "pass_rate": passed / len(attempts),
            "spread": {side: spread(attempts, side) for side in worst.sides},
            "attempts": [
                Attempt.model_construct(
                    verdict=result.judgement.verdict.value, reason=result.judgement.reason, **_sides(result, folder)
                )
                for result in attempts
            ],
        }
    return Case.model_construct(
        name=worst.case.name,
        scenario=scenario.name,
        claim=scenario.claim,
        patches=list(scenario.patches),
        predicted=Predicted.model_construct(base=scenario.predicted_base, patched=scenario.predicted_patched),
        source=scenario.source,
        verdict=worst.judgement.verdict.value,
        reason=worst.judgement.reason,
        **_sides(worst, folder),
        **repeated,
    )


def _sides(result: Result, folder: Path) -> dict[str, Any]:
    """Make the results of an attempt on each kernel, by the kernel's key."""
    expected_log = result.case.scenario.expected_log
    return {name: _side(side, folder, expected_log, result.by_kernel.get(name)) for name, side in result.sides.items()}


def _side(side: runner.Side, folder: Path, expected_log: frozenset[Kind], alone: Judgement | None) -> Side:
    """Make the results of one kernel. `alone`: its own judgement, unless a pair of kernels is judged."""
    evidence = side.outcome if isinstance(side.outcome, Evidence) else None
    judged: dict[str, Any] = {} if alone is None else {"verdict": alone.verdict.value, "judgement": alone.reason}
    return Side.model_construct(
        took_s=round(side.took_s, 3),
        guest_ready_after_s=round(side.ready_after_s, 3),
        evidence=str(side.logs.relative_to(folder)),
        timeline_missed=list(side.missed),
        stack=_stack(side.stack) if isinstance(side.stack, Survey) else None,
        stack_unread=side.stack.why if isinstance(side.stack, SurveyError) else "",
        console=[
            Line.model_construct(
                kind=finding.kind.value,
                seconds=finding.seconds,
                text=finding.text,
                expected=finding.kind in expected_log,
            )
            for finding in side.findings
        ],
        claim=None if evidence is None else _claim(evidence),
        reason=side.outcome.why if not isinstance(side.outcome, Evidence) else side.outcome.reason,
        measures={measure.name: _measure(measure) for measure in evidence.measures} if evidence else {},
        controls=[Control.model_construct(**asdict(control)) for control in evidence.controls] if evidence else [],
        balances=[_balance(balance) for balance in evidence.balances] if evidence else [],
        **judged,
    )


def _claim(evidence: Evidence) -> Literal["closed", "open", "partial", "excess", "unclear"]:
    return evidence.claim.name.lower()  # type: ignore[return-value]  # the names of Gap, which Side lists


def _measure(measure: verdict.Measure) -> Measure:
    return Measure.model_construct(value=measure.value, unit=measure.unit, source=measure.source)


def _balance(balance: verdict.Balance) -> Balance:
    return Balance.model_construct(
        what=balance.what,
        accounted=balance.accounted,
        real=balance.real,
        difference=balance.accounted - balance.real,
        share=round(balance.share, 6),
    )


def _stack(survey: Survey) -> Stack:
    return Stack.model_construct(
        cpus=survey.cpus,
        controllers=survey.controllers,
        blocks=[Block.model_construct(**asdict(block)) for block in survey.blocks],
        mounts=[Mount.model_construct(**asdict(mount)) for mount in survey.mounts],
        swaps=[Swap.model_construct(**asdict(swap)) for swap in survey.swaps],
        groups=[Group.model_construct(**asdict(group)) for group in survey.groups],
        more_groups=survey.more_groups,
    )


def text(document: DocumentModel) -> str:
    """Return the text of a result file."""
    return json.dumps(document.as_json(), indent=2) + "\n"


def locate(run: str, all_runs: Path) -> Path:
    """Return the folder of an earlier run: a name in the folder `all_runs`, a path, or `last`.

    :raise UsageError: there is none; for `last`, none with results.
    """
    if run != "last":
        if "\0" in run:
            raise UsageError(f"run {run!r}: expected a run's name or folder, or last")
        folder = Path(run) if runs.result_file(Path(run)) else all_runs / run
        if not folder.is_dir():
            raise UsageError(
                f"run {run!r}: expected a run's name or folder, or last; `testbed runs` lists those in {all_runs}"
            )
        return folder
    newest = max(
        (all_runs / name for name in untrusted_files.names_below(all_runs) if runs.result_file(all_runs / name)),
        default=None,
    )
    if newest is None:
        raise UsageError(f"run last: expected a run with results in {all_runs}, there is none")
    return newest


def read(run: str, all_runs: Path) -> Document:
    """Read the results of an earlier run of scenarios, named as for `locate`.

    :raise UsageError: there is no such run, or it has no results.
    """
    folder = locate(run, all_runs)
    document = result_reader.read_document(folder)
    if document is None:
        raise UsageError(f"run {run!r}: expected results.json in {folder}, there is none")
    if not isinstance(document, Document):
        raise UsageError(f"run {run!r}: expected a run of scenarios, got one of `{document.what}`: {folder}")
    return document
