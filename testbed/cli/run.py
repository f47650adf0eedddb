"""Verbs that run scenarios on guests: compare, run, matrix."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from testbed.cli import sizes
from testbed.cli.app import KERNEL_HELP, Cold, IgnoreStack, Json, Quiet, TopologyOption, app, err, out, run_async
from testbed.cli.kernels import (
    Config,
    Flavours,
    Fragments,
    MakeArgs,
    Revert,
    Series,
    SeriesPatches,
    SeriesVersion,
    Tree,
    built,
    configured,
    kernel_table,
    nothing_built,
)
from testbed.cli.result_writer import run_kept
from testbed.errors import HostError, UsageError
from testbed.guest.factory import GuestFactory, open_factory
from testbed.guest.metrics import disk_speed
from testbed.hashing import file_sha256
from testbed.host import admission, paths
from testbed.host.admission import Cores
from testbed.progress import Progress
from testbed.report import formats, live, results, tables
from testbed.report.partial import Partial
from testbed.report.schema import KEYS_OF_CASES
from testbed.scenarios import runner
from testbed.scenarios.catalogue import select
from testbed.scenarios.runner import Judge, Result
from testbed.scenarios.scenario import Case
from testbed.scenarios.verdict import EXIT_CODES, Gap, Verdict, overall_verdict
from testbed.store.kernels import boot_check
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import unused
from testbed.topology.host_limits import HostLimits
from testbed.topology.unused import ScenarioTopology
from testbed.units import format_duration, parse_duration

_SAMPLE = "500ms"
_LEAST_SAMPLE_US = 50_000

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Scenarios, or their points; without any the main job's four.", show_default=False),
]
Quick = Annotated[bool, typer.Option("--quick", help="One point of each scenario.")]
Full = Annotated[bool, typer.Option("--full", help="Every point of every scenario.")]
Sample = Annotated[
    str,
    typer.Option("--sample", help="How often to write down what disks and control groups count, for plots; or off."),
]
Repeat = Annotated[
    int, typer.Option("--repeat", min=1, help="Run each case so many times; the gravest verdict counts.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a command line asks for, whatever its verb. `file`: what scenarios have of the topology; `kernels`: by what the results call
    them, named or yet to be built.
    """

    cases: tuple[Case, ...]
    file: ScenarioTopology
    kernels: Mapping[str, str | BuildSpec]
    repeat: int
    cold: bool
    quiet: bool
    as_json: bool
    sample_s: float | None


@app.command()
def compare(
    scenarios: Names = None,
    base: Annotated[str | None, typer.Option("--base", help=f"Kernel before the series. {KERNEL_HELP}")] = None,
    patched: Annotated[str | None, typer.Option("--patched", help="Kernel with the series.")] = None,
    tree: Tree = None,
    series: Series = None,
    revert: Revert = None,
    series_version: SeriesVersion = None,
    series_patches: SeriesPatches = None,
    flavour: Flavours = None,
    fragment: Fragments = None,
    config: Config = None,
    make_arg: MakeArgs = None,
    quick: Quick = False,
    full: Full = False,
    repeat: Repeat = 1,
    topology: TopologyOption = None,
    ignore_stack: IgnoreStack = False,
    cold: Cold = False,
    sample: Sample = _SAMPLE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on a base kernel and a patched one, and say whether the series does what it claims.

    With --tree both are built from it: without and with --series, or without what --revert names and as it is.
    """
    known = kernel_table()
    more = configured(flavour, fragment, config, make_arg, series_version, series_patches)
    kernels: dict[str, str | BuildSpec] = {"base": base or known.base, "patched": patched or known.patched}
    if tree is not None:
        if base or patched or bool(series) == bool(revert):
            raise UsageError(
                "--tree: expected one of --series and --revert beside it, and neither --base nor --patched"
            )
        kernels["base"] = replace(more, source=tree, reverts=tuple(revert or ()))
        kernels["patched"] = replace(more, source=tree, series=tuple(series or ()))
    else:
        nothing_built((series, revert), more)
    wanted = Wanted(
        cases=select(tuple(scenarios or ()), quick=quick, full=full),
        file=for_scenarios(topology, ignore=ignore_stack),
        repeat=repeat,
        cold=cold,
        quiet=quiet,
        as_json=as_json,
        sample_s=_sample_s(sample),
        kernels=kernels,
    )
    run_async(execute(wanted, lambda kernels: runner.judge_as_pair, _telling(wanted, tables.results_table)))


@app.command()
def run(
    scenarios: Names = None,
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", help=KERNEL_HELP)] = None,
    tree: Tree = None,
    series: Series = None,
    revert: Revert = None,
    series_version: SeriesVersion = None,
    series_patches: SeriesPatches = None,
    flavour: Flavours = None,
    fragment: Fragments = None,
    config: Config = None,
    make_arg: MakeArgs = None,
    expect: Annotated[
        str, typer.Option("--expect", help="closed, open, or auto: what the kernel table says of this kernel.")
    ] = "auto",
    quick: Quick = False,
    full: Full = False,
    repeat: Repeat = 1,
    topology: TopologyOption = None,
    ignore_stack: IgnoreStack = False,
    cold: Cold = False,
    sample: Sample = _SAMPLE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on one kernel: does it show the gap (open), or close it?"""
    gaps = {"auto": None, "closed": Gap.CLOSED, "open": Gap.OPEN}
    if expect not in gaps:
        raise UsageError(f"--expect {expect}: expected one of {', '.join(gaps)}")
    file = for_scenarios(topology, ignore=ignore_stack, kernel=tree is None)
    more = configured(flavour, fragment, config, make_arg, series_version, series_patches)
    chosen: str | BuildSpec = kernel or file.kernel or kernel_table().patched
    if tree is not None:
        if kernel is not None:
            raise UsageError("--tree: expected no --kernel beside it")
        chosen = replace(more, source=tree, series=tuple(series or ()), reverts=tuple(revert or ()))
    else:
        nothing_built((series, revert), more)
    wanted = Wanted(
        cases=select(tuple(scenarios or ()), quick=quick, full=full),
        file=file,
        repeat=repeat,
        cold=cold,
        quiet=quiet,
        as_json=as_json,
        sample_s=_sample_s(sample),
        kernels={"kernel": chosen},
    )

    def judge(kernels: dict[str, KernelFiles]) -> Judge:
        return runner.judge_each({"kernel": gaps[expect] or runner.expected_of(kernels["kernel"])})

    run_async(execute(wanted, judge, _telling(wanted, tables.results_table)))


@app.command()
def matrix(
    scenarios: Names = None,
    kernels: Annotated[
        str | None, typer.Option("--kernels", help="Names, with commas between; all of the table without it.")
    ] = None,
    quick: Quick = False,
    full: Full = False,
    repeat: Repeat = 1,
    topology: TopologyOption = None,
    ignore_stack: IgnoreStack = False,
    cold: Cold = False,
    sample: Sample = _SAMPLE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on several kernels: one table, scenario by kernel, each judged by what the kernel table says of it."""
    names = tuple(kernel_table().rows) if kernels is None else sizes.names("--kernels", kernels)
    for name in KEYS_OF_CASES & {*names}:
        raise UsageError(
            f"--kernels {name}: each case has that in results.json for something else; name the file by a path, as ./{name}"
        )
    wanted = Wanted(
        cases=select(tuple(scenarios or ()), quick=quick, full=full),
        file=for_scenarios(topology, ignore=ignore_stack),
        repeat=repeat,
        cold=cold,
        quiet=quiet,
        as_json=as_json,
        sample_s=_sample_s(sample),
        kernels={name: name for name in names},
    )

    def judge(found: dict[str, KernelFiles]) -> Judge:
        return runner.judge_each({side: runner.expected_of(kernel) for side, kernel in found.items()})

    run_async(execute(wanted, judge, _telling(wanted, tables.matrix_table)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A run that has ended. `unwritten`: why its files could not be written, told after what was found."""

    document: dict[str, Any]
    finished: tuple[Result, ...]
    kernels: dict[str, KernelFiles]
    folder: Path
    watch: live.RunDisplay
    unwritten: HostError | None

    @property
    def verdict(self) -> Verdict:
        return overall_verdict(tuple(result.judgement.verdict for result in self.finished))


async def execute(wanted: Wanted, judge: Callable[[dict[str, KernelFiles]], Judge], tell: Callable[[Done], int]) -> int:
    """Build what is yet to be built, open the lab, run, write; `tell` says what was found and gives the exit code."""
    with live.progress(err, quiet=wanted.quiet, as_json=wanted.as_json) as progress:
        if wanted.file.unused:
            progress.note(
                f"not used of the topology, for scenarios build stacks of their own: {', '.join(wanted.file.unused)}"
            )
        specs = await built(wanted.kernels, progress)
        async with open_factory(progress, kernels=tuple(specs.values()), cold=wanted.cold) as factory:
            kernels = {side: await factory.kernel(spec) for side, spec in specs.items()}
            for kernel in kernels.values():
                boot_check.check_for_scenarios(kernel.name, kernel.config)
            folder = paths.new_run_folder(factory.folders.runs)
            _announce(factory, kernels, wanted.file, progress)
            finished: list[Result] = []
            qemu_sha256 = file_sha256(Path(factory.host.qemu.path))
            total, started = len(wanted.cases) * wanted.repeat, time.monotonic()

            def document(why: str | None) -> dict[str, Any]:
                what = "cases" if wanted.repeat == 1 else "attempts"
                partial = None if why is None else Partial(ended=len(finished), wanted=total, what=what, why=why)
                verdict = overall_verdict(tuple(one.judgement.verdict for one in finished), partial=partial is not None)
                return results.document(
                    folder,
                    verdict,
                    sys.argv,
                    factory.host,
                    factory.image,
                    kernels,
                    tuple(finished),
                    time.monotonic() - started,
                    model=wanted.file.guest,
                    unused=wanted.file.unused,
                    qemu_sha256=qemu_sha256,
                    partial=partial,
                )

            with (
                live.RunDisplay(progress, err, total) as watch,
                run_kept(folder, document, formats.write, progress.note) as keeper,
            ):

                def on_result(one: Result) -> None:
                    watch.result(one.case.name, one.attempt, one.judgement.verdict, one.judgement.reason)
                    finished[:] = runner.sort_results((*finished, one), wanted.cases)
                    keeper.update()

                job = runner.Job(
                    factory=factory,
                    cases=wanted.cases,
                    model=wanted.file.guest,
                    kernels=kernels,
                    folder=folder,
                    on_step=watch.step,
                    on_result=on_result,
                    repeat=wanted.repeat,
                    sample_s=wanted.sample_s,
                )
                await runner.run(job, judge(kernels))
                complete, unwritten = keeper.finish()
    done = Done(
        document=complete, finished=tuple(finished), kernels=kernels, folder=folder, watch=watch, unwritten=unwritten
    )
    code = tell(done)
    if unwritten is not None:
        raise unwritten
    return code


def _telling(
    wanted: Wanted, show: Callable[[tuple[Result, ...], dict[str, KernelFiles]], RenderableType]
) -> Callable[[Done], int]:
    def tell(done: Done) -> int:
        code = EXIT_CODES[done.verdict]
        if wanted.as_json:
            print(json.dumps(done.document))
            done.watch.end(done.verdict, done.folder, code)
            return code
        out.print(show(done.finished, done.kernels))
        tables.show_losses(done.finished, out)
        took = f"{done.document['took_s']:.0f} s for {done.document['guest_seconds']:.0f} s of guests"
        out.print(took, highlight=False)
        print(live.last_line(done.verdict.value, done.folder))
        return code

    return tell


def _sample_s(text: str) -> float | None:
    """:raise UsageError: it is no duration that samples can be taken at."""
    if text == "off":
        return None
    try:
        microseconds = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--sample {text}: {error}, or off") from error
    if microseconds < _LEAST_SAMPLE_US:
        raise UsageError(f"--sample {text}: expected at least {format_duration(_LEAST_SAMPLE_US)}, or off")
    return microseconds / 1e6


def _announce(
    factory: GuestFactory, kernels: dict[str, KernelFiles], file: ScenarioTopology, progress: Progress
) -> None:
    how = "KVM" if factory.host.accelerator == "kvm" else "TCG, QEMU's own emulation (`testbed doctor` says why)"
    clones = "booted cold" if factory.cold else "cloned from templates"
    progress.note(
        f"QEMU {factory.host.qemu.version} on {how}; {admission.most_at_once(Cores.SHARED, factory.host, file.guest.memory)} guests at once, {clones}"
    )
    for beyond in disk_speed.too_fast_profiles(file.guest, disk_speed.load(factory.folders.cache, factory.host)):
        progress.note(beyond)
    for side, kernel in kernels.items():
        progress.note(f"{side}: {kernel.release} ({kernel.origin})")
    if is_one_kernel(kernels):
        progress.note(
            "base and patched are one kernel, of the same content: no case can pass, for it cannot show the gap and close it"
        )


def is_one_kernel(kernels: Mapping[str, KernelFiles]) -> bool:
    """Whether the sides of `compare` are the same kernel, whatever its files are called."""
    return kernels.keys() == {"base", "patched"} and kernels["base"].sha256 == kernels["patched"].sha256


def for_scenarios(file: Path | None, *, ignore: bool, kernel: bool = False) -> ScenarioTopology:
    """What scenarios have of a topology; `kernel`: the verb runs on the kernel that it names. Raises as `unused.for_scenarios`."""
    path = file or paths.shipped("topologies") / "default.yaml"
    return unused.load_for_scenarios(path, limits=HostLimits.of_this_host(), kernel=kernel, ignore=ignore)
