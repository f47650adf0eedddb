"""Runs scenarios on guests and reports their results, for `compare`, `run`, `matrix` and `sensitivity`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from testbed.cli import option_values
from testbed.cli.app import err, out, run_async
from testbed.cli.kernels import build_kernels
from testbed.cli.run_results import writing_results
from testbed.errors import HostError
from testbed.guest.factory import GuestFactory, open_factory
from testbed.guest.metrics import disk_speed
from testbed.hashing import file_sha256
from testbed.host import admission, paths
from testbed.host.admission import Cores
from testbed.progress import Progress
from testbed.report import formats, live, results, tables
from testbed.report.partial import Partial
from testbed.report.results import RunRecord
from testbed.report.schema import Document
from testbed.scenarios import runner
from testbed.scenarios.catalogue import select
from testbed.scenarios.runner import Judge, Result
from testbed.scenarios.scenario import Case
from testbed.scenarios.verdict import EXIT_CODES, Verdict, overall_verdict
from testbed.store.kernels import boot_check
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import unused
from testbed.topology.host_limits import HostLimits
from testbed.topology.unused import ScenarioTopology

DEFAULT_SAMPLE = "500ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options that all commands on scenarios share, as they were given."""

    scenarios: list[str] | None = None
    quick: bool = False
    full: bool = False
    repeat: int = 1
    topology: Path | None = None
    ignore_stack: bool = False
    cold: bool = False
    sample: str = "off"
    as_json: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioRun:
    """A run of scenarios, its options checked.

    `topology`: the parts of the topology file that scenarios use; `kernels`: by their keys in the results, named or yet
    to be built.
    """

    options: RunOptions
    cases: tuple[Case, ...]
    topology: ScenarioTopology
    kernels: Mapping[str, str | BuildSpec]
    sample_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run that has ended. `write_error`: why its files could not be written, raised after its results are shown."""

    document: Document
    results: tuple[Result, ...]
    kernels: dict[str, KernelFiles]
    folder: Path
    display: live.RunDisplay
    write_error: HostError | None

    @property
    def verdict(self) -> Verdict:
        return overall_verdict(tuple(result.judgement.verdict for result in self.results))


# Makes the judge of a run's cases for the kernels, once their files are known.
MakeJudge = Callable[[dict[str, KernelFiles]], Judge]
# Shows a run's results, and returns the exit code.
Show = Callable[[FinishedRun], int]
MakeTable = Callable[[tuple[Result, ...], dict[str, KernelFiles]], RenderableType]


def start(run: ScenarioRun, make_judge: MakeJudge, make_table: MakeTable) -> None:
    """Execute a run, print its table, and exit with its verdict."""
    run_async(execute(run, make_judge, _shown_as(make_table, as_json=run.options.as_json)))


def prepare(
    options: RunOptions, kernels: Mapping[str, str | BuildSpec], *, topology: ScenarioTopology | None = None
) -> ScenarioRun:
    """Check the options of a run. `topology`: that of the options, where it was read before.

    :raise UsageError: an option is wrong. :raise TopologyError: the topology is wrong, or has a stack that scenarios do
    not use.
    """
    return ScenarioRun(
        options=options,
        cases=select(tuple(options.scenarios or ()), quick=options.quick, full=options.full),
        topology=topology or read_topology(options),
        sample_s=option_values.sample_interval_s(options.sample),
        kernels=kernels,
    )


def read_topology(options: RunOptions, *, uses_kernel: bool = False) -> ScenarioTopology:
    """Read the parts of a topology that scenarios use. `uses_kernel`: the command runs on the kernel that the file
    names.

    Raises as `unused.load_for_scenarios`.
    """
    path = options.topology or paths.shipped("topologies") / "default.yaml"
    return unused.load_for_scenarios(
        path, limits=HostLimits.of_this_host(), kernel=uses_kernel, ignore=options.ignore_stack
    )


async def execute(run: ScenarioRun, make_judge: MakeJudge, show: Show) -> int:
    """Build kernels, open the guest factory, run the cases, write the results and show them; return the exit code."""
    options = run.options
    with live.progress(err, quiet=options.quiet, as_json=options.as_json) as progress:
        if run.topology.unused:
            unused_parts = ", ".join(run.topology.unused)
            progress.note(f"not used of the topology, for scenarios build stacks of their own: {unused_parts}")
        names = await build_kernels(run.kernels, progress)
        async with open_factory(progress, kernels=tuple(names.values()), cold=options.cold) as factory:
            kernels = {side: await factory.kernel(name) for side, name in names.items()}
            for kernel in kernels.values():
                boot_check.check_for_scenarios(kernel.name, kernel.config)
            execution = _Execution(run, factory, kernels, paths.new_run_folder(factory.folders.runs))
            _announce(factory, kernels, run.topology, progress)
            finished = await execution.run(make_judge(kernels), progress)
    code = show(finished)
    if finished.write_error is not None:
        raise finished.write_error
    return code


class _Execution:
    """Runs the cases, and keeps the results in the run's folder up to date."""

    def __init__(self, run: ScenarioRun, factory: GuestFactory, kernels: dict[str, KernelFiles], folder: Path) -> None:
        self._run, self._factory, self._kernels, self._folder = run, factory, kernels, folder
        self._results: tuple[Result, ...] = ()
        self._total = len(run.cases) * run.options.repeat
        self._qemu_sha256 = file_sha256(Path(factory.host.qemu.path))
        self._started = time.monotonic()

    async def run(self, judge: Judge, progress: Progress) -> FinishedRun:
        run = self._run
        with (
            live.RunDisplay(progress, err, self._total) as display,
            writing_results(self._folder, self._document, formats.write, progress.note) as writer,
        ):

            def on_result(result: Result) -> None:
                display.result(result.case.name, result.attempt, result.judgement.verdict, result.judgement.reason)
                self._results = runner.sort_results((*self._results, result), run.cases)
                writer.update()

            job = runner.Job(
                factory=self._factory,
                cases=run.cases,
                model=run.topology.guest,
                kernels=self._kernels,
                folder=self._folder,
                on_step=display.step,
                on_result=on_result,
                repeat=run.options.repeat,
                sample_s=run.sample_s,
            )
            await runner.run(job, judge)
            document, write_error = writer.finish()
        return FinishedRun(
            document=document,
            results=self._results,
            kernels=self._kernels,
            folder=self._folder,
            display=display,
            write_error=write_error,
        )

    def _document(self, why: str | None) -> Document:
        """Return the results so far. `why`: the reason of an early end, "" while the run goes on; None if complete."""
        what, ended = "cases" if self._run.options.repeat == 1 else "attempts", len(self._results)
        partial = Partial(ended=ended, wanted=self._total, at_most=False, what=what, why=why or "")
        return results.document(
            RunRecord(
                folder=self._folder,
                command=sys.argv,
                host=self._factory.host,
                image=self._factory.image,
                kernels=self._kernels,
                results=self._results,
                took_s=time.monotonic() - self._started,
                model=self._run.topology.guest,
                unused=self._run.topology.unused,
                qemu_sha256=self._qemu_sha256,
                partial=None if why is None else partial,
            )
        )


def _shown_as(make_table: MakeTable, *, as_json: bool) -> Show:
    """Return a function that prints the results of a run as JSON or as a table, and returns the exit code."""

    def show(run: FinishedRun) -> int:
        code = EXIT_CODES[run.verdict]
        if as_json:
            print(json.dumps(run.document.as_json()))
            run.display.end(run.verdict, run.folder, code)
            return code
        out.print(make_table(run.results, run.kernels))
        tables.show_losses(run.results, out)
        took = f"{run.document.took_s:.0f} s for {run.document.guest_seconds:.0f} s of guests"
        out.print(took, highlight=False)
        print(live.last_line(run.verdict.value, run.folder))
        return code

    return show


def _announce(
    factory: GuestFactory, kernels: dict[str, KernelFiles], topology: ScenarioTopology, progress: Progress
) -> None:
    how = "KVM" if factory.host.accelerator == "kvm" else "TCG, QEMU's own emulation (`testbed doctor` says why)"
    clones = "booted cold" if factory.cold else "cloned from templates"
    at_once = admission.most_at_once(Cores.SHARED, factory.host, topology.guest.memory)
    progress.note(f"QEMU {factory.host.qemu.version} on {how}; {at_once} guests at once, {clones}")
    for warning in disk_speed.too_fast_profiles(topology.guest, disk_speed.load(factory.folders.cache, factory.host)):
        progress.note(warning)
    for side, kernel in kernels.items():
        progress.note(f"{side}: {kernel.release} ({kernel.origin})")
    if is_one_kernel(kernels):
        progress.note(
            "base and patched are one kernel, of the same content: no case can pass, "
            "for it cannot show the gap and close it"
        )


def is_one_kernel(kernels: Mapping[str, KernelFiles]) -> bool:
    """Whether both sides of `compare` are the same kernel, under whatever names."""
    return kernels.keys() == {"base", "patched"} and kernels["base"].sha256 == kernels["patched"].sha256
