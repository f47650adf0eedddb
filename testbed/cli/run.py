"""Commands that run scenarios on guests: compare, run, matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from testbed.cli import option_values
from testbed.cli.app import KERNEL_HELP, Cold, IgnoreStack, Json, Quiet, TopologyOption, app
from testbed.cli.kernels import (
    BuildOptions,
    Config,
    Flavours,
    Fragments,
    MakeArgs,
    Revert,
    Series,
    SeriesPatches,
    SeriesVersion,
    Tree,
    build_config,
)
from testbed.cli.scenario_run import DEFAULT_SAMPLE, RunOptions, prepare, read_topology, start
from testbed.errors import UsageError
from testbed.report import tables
from testbed.report.schema import KEYS_OF_CASES
from testbed.scenarios import runner
from testbed.scenarios.runner import Judge
from testbed.scenarios.verdict import Gap
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import shipped_table

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Scenarios, or points of them; by default the four of the main job.", show_default=False),
]
Quick = Annotated[bool, typer.Option("--quick", help="One point of each scenario.")]
Full = Annotated[bool, typer.Option("--full", help="Every point of every scenario.")]
Sample = Annotated[
    str,
    typer.Option(
        "--sample", help="The interval at which counters of disks and control groups are recorded for plots; or off."
    ),
]
Repeat = Annotated[
    int, typer.Option("--repeat", min=1, help="Run each case this many times; the worst verdict counts.")
]
Expect = Annotated[
    str, typer.Option("--expect", help="closed, open, or auto: what the kernel table says of this kernel.")
]


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
    sample: Sample = DEFAULT_SAMPLE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on a base kernel and a patched one, and report whether the series does what it claims.

    With --tree both are built from it: without and with --series, or with the patches of --revert removed and as it is.
    """
    build = build_config(flavour, fragment, config, make_arg, series_version, series_patches)
    _compare(
        base,
        patched,
        BuildOptions(tree=tree, series=series, revert=revert, config=build),
        RunOptions(
            scenarios=scenarios,
            quick=quick,
            full=full,
            repeat=repeat,
            topology=topology,
            ignore_stack=ignore_stack,
            cold=cold,
            sample=sample,
            as_json=as_json,
            quiet=quiet,
        ),
    )


def _compare(base: str | None, patched: str | None, build: BuildOptions, options: RunOptions) -> None:
    table = shipped_table()
    kernels: dict[str, str | BuildSpec] = {"base": base or table.base, "patched": patched or table.patched}
    if build.tree is not None and (base or patched or bool(build.series) == bool(build.revert)):
        raise UsageError("--tree: expected one of --series and --revert beside it, and neither --base nor --patched")
    if (spec := build.spec()) is not None:
        kernels = {"base": replace(spec, series=()), "patched": replace(spec, reverts=())}
    start(prepare(options, kernels), lambda kernels: runner.judge_as_pair, tables.results_table)


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
    expect: Expect = "auto",
    quick: Quick = False,
    full: Full = False,
    repeat: Repeat = 1,
    topology: TopologyOption = None,
    ignore_stack: IgnoreStack = False,
    cold: Cold = False,
    sample: Sample = DEFAULT_SAMPLE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on one kernel: does it show the gap (open), or close it?"""
    build = build_config(flavour, fragment, config, make_arg, series_version, series_patches)
    _run(
        kernel,
        expect,
        BuildOptions(tree=tree, series=series, revert=revert, config=build),
        RunOptions(
            scenarios=scenarios,
            quick=quick,
            full=full,
            repeat=repeat,
            topology=topology,
            ignore_stack=ignore_stack,
            cold=cold,
            sample=sample,
            as_json=as_json,
            quiet=quiet,
        ),
    )


def _run(kernel: str | None, expect: str, build: BuildOptions, options: RunOptions) -> None:
    gaps = {"auto": None, "closed": Gap.CLOSED, "open": Gap.OPEN}
    if expect not in gaps:
        raise UsageError(f"--expect {expect}: expected one of {', '.join(gaps)}")
    topology = read_topology(options, uses_kernel=build.tree is None)
    if build.tree is not None and kernel is not None:
        raise UsageError("--tree: expected no --kernel beside it")
    chosen = build.spec() or kernel or topology.kernel or shipped_table().patched

    def make_judge(kernels: dict[str, KernelFiles]) -> Judge:
        return runner.judge_each({"kernel": gaps[expect] or runner.expected_of(kernels["kernel"])})

    start(prepare(options, {"kernel": chosen}, topology=topology), make_judge, tables.results_table)


@app.command()
def matrix(
    scenarios: Names = None,
    kernels: Annotated[
        str | None, typer.Option("--kernels", help="Names, with commas between; all of the table by default.")
    ] = None,
    quick: Quick = False,
    full: Full = False,
    repeat: Repeat = 1,
    topology: TopologyOption = None,
    ignore_stack: IgnoreStack = False,
    cold: Cold = False,
    sample: Sample = DEFAULT_SAMPLE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on several kernels: one table, scenario by kernel, each judged by what the kernel table says
    of it.
    """
    _matrix(
        kernels,
        RunOptions(
            scenarios=scenarios,
            quick=quick,
            full=full,
            repeat=repeat,
            topology=topology,
            ignore_stack=ignore_stack,
            cold=cold,
            sample=sample,
            as_json=as_json,
            quiet=quiet,
        ),
    )


def _matrix(kernels: str | None, options: RunOptions) -> None:
    names = tuple(shipped_table().rows) if kernels is None else option_values.kernel_names("--kernels", kernels)
    for name in KEYS_OF_CASES & {*names}:
        raise UsageError(
            f"--kernels {name}: each case has that in results.json for something else; "
            f"name the file by a path, as ./{name}"
        )

    def make_judge(files: dict[str, KernelFiles]) -> Judge:
        return runner.judge_each({name: runner.expected_of(kernel) for name, kernel in files.items()})

    start(prepare(options, {name: name for name in names}), make_judge, tables.matrix_table)
