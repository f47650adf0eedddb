"""Runs scenarios on guests and brings back outcomes: side by side as far as the host has cores and memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.console import Finding
from testbed.errors import TestbedError
from testbed.guest import Guest
from testbed.host import Host
from testbed.kernels import Series
from testbed.lab import Lab
from testbed.scenarios.base import NEEDS_PRELUDE, Need, Scenario
from testbed.store.kernel_files import KernelFiles
from testbed.topology.model import Guest as GuestModel
from testbed.verdict import Charge, Judgement, Lost, Outcome, Skipped, judge_pair, judge_single


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One scenario on one kernel. `findings` are the console's; `evidence` the folder of its logs; times in seconds."""

    outcome: Outcome
    findings: tuple[Finding, ...]
    evidence: Path
    took_s: float
    ready_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One scenario, judged. `sides` is `base` and `patched`, or `kernel` alone."""

    scenario: Scenario
    sides: dict[str, Side]
    judgement: Judgement


# Hears of every step: scenario, side, and what is happening to it.
OnStep = Callable[[str, str, str], None]
OnResult = Callable[[Result], None]


def slots(host: Host, model: GuestModel) -> int:
    """How many guests may run at once: one a core, and no more than half of the free memory holds.

    Half, because what a guest needs beyond its own memory (translated code, QEMU itself) is about 100 MiB, and other people use the host.
    """
    return max(1, min(host.cores, host.memory_free_bytes // 2 // model.memory))


async def compare(
    lab: Lab,
    scenarios: tuple[Scenario, ...],
    model: GuestModel,
    kernels: dict[str, KernelFiles],
    folder: Path,
    on_step: OnStep,
    on_result: OnResult,
) -> tuple[Result, ...]:
    """Every scenario on every kernel of `kernels` (`base` and `patched`), judged in pairs."""
    return await _run_all(
        lab, scenarios, model, kernels, folder, on_step, on_result, lambda sides: judge_pair(sides["base"], sides["patched"])
    )


async def run_single(
    lab: Lab,
    scenarios: tuple[Scenario, ...],
    model: GuestModel,
    kernel: KernelFiles,
    folder: Path,
    expected: Charge,
    on_step: OnStep,
    on_result: OnResult,
) -> tuple[Result, ...]:
    """Every scenario on one kernel, judged against what is expected of it."""
    return await _run_all(
        lab, scenarios, model, {"kernel": kernel}, folder, on_step, on_result, lambda sides: judge_single(sides["kernel"], expected)
    )


def expected_of(kernel: KernelFiles) -> Charge:
    """What a kernel should do: charge, unless the table says that it is older than the series."""
    return Charge.BYPASSED if kernel.series is Series.BEFORE else Charge.CHARGED


async def _run_all(
    lab: Lab,
    scenarios: tuple[Scenario, ...],
    model: GuestModel,
    kernels: dict[str, KernelFiles],
    folder: Path,
    on_step: OnStep,
    on_result: OnResult,
    judge: Callable[[dict[str, Outcome]], Judgement],
) -> tuple[Result, ...]:
    gate = asyncio.Semaphore(slots(lab.host, model))

    async def one(scenario: Scenario, side: str, kernel: KernelFiles) -> Side:
        async with gate:
            evidence = folder / "guests" / f"{scenario.name.replace('/', '-')}-{side}"
            return await _side(lab, scenario, model, kernel, evidence, lambda step: on_step(scenario.name, side, step))

    async def pair(scenario: Scenario) -> Result:
        async with asyncio.TaskGroup() as group:
            tasks = {side: group.create_task(one(scenario, side, kernel)) for side, kernel in kernels.items()}
        sides = {side: task.result() for side, task in tasks.items()}
        result = Result(scenario=scenario, sides=sides, judgement=judge({side: done.outcome for side, done in sides.items()}))
        on_result(result)
        return result

    # The semaphore is fair: scenarios start in their order, both kernels of one beside each other.
    async with asyncio.TaskGroup() as group:
        pairs = [group.create_task(pair(scenario)) for scenario in scenarios]
    return tuple(task.result() for task in pairs)


async def _side(
    lab: Lab, scenario: Scenario, model: GuestModel, kernel: KernelFiles, evidence: Path, on_step: Callable[[str], None]
) -> Side:
    started = time.monotonic()
    ready = started
    findings: list[Finding] = []
    lack = scenario.lacks(model)
    if lack is not None:
        return Side(outcome=Skipped(why=lack), findings=(), evidence=evidence, took_s=0, ready_after_s=0)
    outcome: Outcome
    try:
        on_step("starting its guest")
        async with lab.guest("g0", model, kernel, evidence) as guest:
            findings = guest.console.findings
            ready = time.monotonic()
            on_step("running")
            missing = await _missing(guest, scenario.needs)
            outcome = Skipped(why=f"{kernel.name} lacks {', '.join(missing)}") if missing else await scenario.steps(guest)
    except TestbedError as error:
        outcome = Lost(why=str(error))
    ended = time.monotonic()
    on_step("done")
    return Side(outcome=outcome, findings=tuple(findings), evidence=evidence, took_s=ended - started, ready_after_s=max(0, ready - started))


async def _missing(guest: Guest, needs: tuple[Need, ...]) -> tuple[str, ...]:
    """What of the needs the guest does not have; asked in one command."""
    conditions = "\n".join(f"{need.test} || echo {number}" for number, need in enumerate(needs))
    answered = await guest.script(NEEDS_PRELUDE + conditions, check=False)
    return tuple(needs[int(number)].what for number in answered.stdout.split())
