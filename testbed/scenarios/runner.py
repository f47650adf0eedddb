"""Runs scenarios on guests, as many at once as the host has cores and memory for, and judges their outcomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from testbed.errors import ReadingError, TestbedError
from testbed.guest import shell_functions
from testbed.guest.channels.kernel_log import Finding
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.guest.lifecycle import State
from testbed.guest.metrics.cgroup_sampler import sampling_cgroups
from testbed.guest.metrics.disk_sampler import sampling_disks
from testbed.guest.setup import survey, survey_parser
from testbed.guest.setup.survey import Hardware, Survey, SurveyError
from testbed.guest.timeline import run_timeline
from testbed.host import admission, eventlog, failures
from testbed.host.admission import Cores
from testbed.scenarios.scenario import NEEDS_PRELUDE, Case, Need
from testbed.scenarios.verdict import Gap, Judgement, Lost, Outcome, Skipped, judge_pair, judge_single, worst
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import Series
from testbed.topology.model import GuestModel
from testbed.units import parse_whole

_NOT_READ = SurveyError(why="the steps of its scenario did not run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The result of one case on one kernel.

    `findings`: notable lines of the console; `logs`: folder of the guest's logs; `missed`: entries of the timeline that
    never started; `stack`: the block stack in the guest while the claim was measured, or why that is not known.
    """

    outcome: Outcome
    findings: tuple[Finding, ...]
    logs: Path
    took_s: float
    ready_after_s: float
    missed: tuple[str, ...] = ()
    stack: Survey | SurveyError = _NOT_READ


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one case, with its judgement.

    `sides`: by the names in `Job.kernels`; `attempt`: number of the repetition, from 1; `by_kernel`: the judgement of
    each kernel, unless a pair of kernels is judged.
    """

    case: Case
    attempt: int
    sides: dict[str, Side]
    judgement: Judgement
    by_kernel: dict[str, Judgement] = field(default_factory=dict)


# Called at every step with the name of the case, the side, and what is happening.
OnStep = Callable[[str, str, str], None]
OnResult = Callable[[Result], None]
Judge = Callable[[dict[str, Outcome]], tuple[Judgement, dict[str, Judgement]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The parameters of a run. Every case runs on every kernel, `repeat` times.

    `sample_s`: interval at which counters of disks and cgroups are recorded; None: only disks, if the topology says so.
    """

    factory: GuestFactory
    cases: tuple[Case, ...]
    model: GuestModel
    kernels: dict[str, KernelFiles]
    folder: Path
    on_step: OnStep
    on_result: OnResult
    repeat: int = 1
    sample_s: float | None = None


def judge_as_pair(outcomes: dict[str, Outcome]) -> tuple[Judgement, dict[str, Judgement]]:
    """Judge the sides `base` and `patched` against each other, as `testbed compare` does."""
    return judge_pair(outcomes["base"], outcomes["patched"]), {}


def judge_each(expected: dict[str, Gap]) -> Judge:
    """Return a judge of single kernels: each against its expectation, by side; the worst is the case's judgement."""

    def judge(outcomes: dict[str, Outcome]) -> tuple[Judgement, dict[str, Judgement]]:
        by_side = {side: judge_single(outcome, expected[side]) for side, outcome in outcomes.items()}
        return worst(tuple(by_side.values())), by_side

    return judge


def expected_of(kernel: KernelFiles) -> Gap:
    """Return what a kernel should show: a closed gap, unless the table says that it is older than the series."""
    return Gap.OPEN if kernel.series is Series.BEFORE else Gap.CLOSED


async def run(job: Job, judge: Judge) -> tuple[Result, ...]:
    """Run every case on every kernel, and judge it. Results are in the order of the cases, attempts together.

    Cases that share the host's cores and cases that mostly wait run first, side by side; then cases that measure time,
    one guest at a time.
    """
    gates = {
        cores: asyncio.Semaphore(admission.most_at_once(cores, job.factory.host, job.model.memory)) for cores in Cores
    }

    async def run_side(case: Case, attempt: int, side: str) -> Side:
        async with gates[case.scenario.cores]:
            name = f"{case.name.replace('/', '-')}-{side}" + (f"-{attempt}" if job.repeat > 1 else "")
            return await _run_side(
                job,
                case,
                job.kernels[side],
                job.folder / "guests" / name,
                lambda step: job.on_step(case.name, side, step),
            )

    def record(case: Case, attempt: int, sides: dict[str, Side]) -> Result:
        judgement, by_kernel = judge({side: done.outcome for side, done in sides.items()})
        result = Result(case=case, attempt=attempt, sides=sides, judgement=judgement, by_kernel=by_kernel)
        eventlog.log_event(f"{case.name}: {judgement.verdict.value}: {judgement.reason}")
        job.on_result(result)
        return result

    async def run_case(case: Case, attempt: int) -> Result:
        async with asyncio.TaskGroup() as group:
            tasks = {side: group.create_task(run_side(case, attempt, side)) for side in job.kernels}
        return record(case, attempt, {side: task.result() for side, task in tasks.items()})

    # The semaphore is fair: cases start in their order, and all kernels of a case run side by side.
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(run_case(*turn)) for turn in _turns(job) if turn[0].scenario.cores is not Cores.ALONE
        ]
    results = [task.result() for task in tasks]
    for case, attempt in _turns(job):
        if case.scenario.cores is Cores.ALONE:
            results.append(record(case, attempt, {side: await run_side(case, attempt, side) for side in job.kernels}))
    return sort_results(results, job.cases)


def sort_results(results: Iterable[Result], cases: tuple[Case, ...]) -> tuple[Result, ...]:
    """Sort results in the order of the cases, with the attempts of each case together."""
    order = {case.name: number for number, case in enumerate(cases)}
    return tuple(sorted(results, key=lambda result: (order[result.case.name], result.attempt)))


def _turns(job: Job) -> Iterator[tuple[Case, int]]:
    return ((case, attempt) for case in job.cases for attempt in range(1, job.repeat + 1))


# With several CPUs QEMU's emulation rarely executes an instruction that the kernel is just replacing
# (smp_text_poke_bp): seen once in 348 guests, on 7.2 while a tracepoint was switched on. This is an emulation fault,
# not a kernel bug.
_EMULATED = "Oops: int3"


async def _run_side(job: Job, case: Case, kernel: KernelFiles, logs: Path, on_step: Callable[[str], None]) -> Side:
    """Run one case on one kernel; a second time if the first guest's console shows that the emulation broke it."""
    first = await _SideRun(job, case, kernel, logs, on_step).run()
    emulated = job.factory.host.accelerator == "tcg" and any(_EMULATED in finding.text for finding in first.findings)
    if not (emulated and isinstance(first.outcome, Lost)):
        return first
    on_step("the emulation lost its guest, once more")
    again = await _SideRun(job, case, kernel, logs.with_name(f"{logs.name}-again"), on_step).run()
    return replace(again, findings=first.findings + again.findings, took_s=first.took_s + again.took_s)


# States of a starting guest that are reported as steps; the steps of its scenario come after.
_REPORTED = (State.LAUNCHED, State.MONITORED, State.AWAKE, State.IDENTIFIED, State.VERIFIED)


class _SideRun:
    """One attempt at one case on one kernel: starts a guest, and runs the steps of the scenario in it."""

    def __init__(self, job: Job, case: Case, kernel: KernelFiles, logs: Path, on_step: Callable[[str], None]) -> None:
        self._job, self._case, self._kernel, self._logs, self._on_step = job, case, kernel, logs, on_step
        self._started = self._ready = time.monotonic()
        self._findings: list[Finding] = []
        self._missed: list[str] = []
        self._stack: Survey | SurveyError = _NOT_READ

    async def run(self) -> Side:
        """Run the case. Any error becomes the outcome of this side, so that the other cases go on."""
        if (lack := self._case.point.lacks(self._job.model)) is not None:
            return Side(outcome=Skipped(why=lack), findings=(), logs=self._logs, took_s=0, ready_after_s=0)
        outcome: Outcome
        try:
            outcome = await self._run_guest()
        except Exception as error:
            outcome = Lost(why=failures.describe(error, self._logs))
        ended = time.monotonic()
        self._on_step("done")
        return Side(
            outcome=outcome,
            findings=tuple(self._findings),
            logs=self._logs,
            took_s=ended - self._started,
            ready_after_s=max(0, self._ready - self._started),
            missed=tuple(self._missed),
            stack=self._stack,
        )

    async def _run_guest(self) -> Outcome:
        job, scenario = self._job, self._case.scenario
        model = self._case.model(job.model)
        cores = scenario.cores.count(job.factory.host)
        who = f"{self._case.name} on {self._kernel.name}"
        async with job.factory.admitted((model,), who, cores=cores, on_wait=self._on_step):
            self._started = self._ready = time.monotonic()
            self._on_step("starting its guest")
            async with job.factory.guest("g0", model, self._kernel, self._logs, on_state=self._report_state) as guest:
                self._findings = guest.console.findings
                self._ready = time.monotonic()
                self._on_step("running")
                if lacks := await missing_needs(guest, scenario.needs):
                    return Skipped(why=f"{self._kernel.name} lacks {', '.join(lacks)}")
                return await self._run_steps(guest)

    def _report_state(self, state: State) -> None:
        if state in _REPORTED:
            self._on_step(state.value)

    async def _run_steps(self, guest: Guest) -> Outcome:
        try:
            async with (
                sampling_disks(guest, _disk_sample_interval_s(self._job)),
                sampling_cgroups(guest, self._job.sample_s),
                run_timeline(guest) as self._missed,
            ):
                outcome = await self._case.scenario.steps(guest, self._case.point)
        except Exception:
            self._stack = await survey_stack(guest)
            raise
        self._stack = await survey_stack(guest)
        return outcome


def _disk_sample_interval_s(job: Job) -> float | None:
    """Return the interval for disks, or None if the topology has its own, which takes precedence."""
    return None if job.model.sample is not None else job.sample_s


async def missing_needs(guest: Guest, needs: tuple[Need, ...]) -> tuple[str, ...]:
    """Test the needs in the guest, and return those that it lacks.

    One command tests them all. It also copies the script into the guest that surveys its stack.

    :raise ReadingError: the guest printed something unexpected.
    """
    where = f"guest {guest.name}: what it lacks"
    conditions = "\n".join(f"{need.test} || echo lacks {number}" for number, need in enumerate(needs))
    prepare = survey.survey_commands(device.path for device in guest.disks.values())
    answered = await guest.script(f"{prepare}{NEEDS_PRELUDE}{conditions}\necho all asked", check=False)
    if shell_functions.printed_word(answered.stdout, "all", where) != "asked":
        raise ReadingError(where, "its answers", answered.stdout)
    lacking = [
        parse_whole(" ".join(words), where, below=len(needs))
        for words in shell_functions.lines(answered.stdout, "lacks")
    ]
    return tuple(needs[number].what for number in lacking)


async def survey_stack(guest: Guest) -> Survey | SurveyError:
    """Read the block stack that the guest had when the steps of its scenario measured their claim."""
    try:
        printed = (await guest.script(survey.SHOW)).stdout
        disks = guest.model.disks
        return survey_parser.parse(
            printed,
            {
                device.path: Hardware(
                    name=name, type=device.kind, profile=(disks[name].profile or "") if name in disks else ""
                )
                for name, device in guest.disks.items()
            },
        )
    except TestbedError as error:
        return SurveyError(why=str(error).partition("\n")[0])
