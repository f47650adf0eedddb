"""The command line. The only place that exits: 0 pass, 1 fail, 2 error, 3 no result, 4 everything skipped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from testbed import __version__, doctor, paths, plan, probe, runner
from testbed.errors import HostError, Problem, TestbedError, TopologyError, UsageError
from testbed.host import Host
from testbed.kernels import load_table
from testbed.lab import IMAGE, Lab, open_lab
from testbed.progress import Progress, Task
from testbed.report import live, results, table
from testbed.runner import Result
from testbed.scenarios import select
from testbed.store import cache, image, kernel_files
from testbed.store.kernel_files import KernelFiles
from testbed.topology import Guest, Topology, load
from testbed.verdict import EXIT_CODES, Charge, overall

app = typer.Typer(
    name="testbed", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Checks kernel patch series on ephemeral QEMU guests with emulated disks.",
)  # fmt: skip
image_app = typer.Typer(no_args_is_help=True, help="Guest images, built from images/*.yaml.")
kernel_app = typer.Typer(no_args_is_help=True, help="Kernels, from images/kernels.yaml.")
app.add_typer(image_app, name="image")
app.add_typer(kernel_app, name="kernel")

out = Console()
err = Console(stderr=True)

ERROR, FAILED = 2, 1

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Cold = Annotated[bool, typer.Option("--cold", help="Boot every guest instead of cloning a template.")]
TopologyOption = Annotated[Path | None, typer.Option("--topology", "-t", help="Topology file; topologies/default.yaml without it.")]
Scenarios = Annotated[list[str] | None, typer.Argument(help="Scenarios to run; all without any.", show_default=False)]
KERNEL_HELP = "A name of images/kernels.yaml, BZIMAGE[:MODULES_FOLDER], or FILE.deb[:FILE.deb]."


def main() -> None:
    """Entry point: every error on purpose is one message and an exit code, never a traceback (unless TESTBED_DEBUG is set)."""
    try:
        app(standalone_mode=True)
    except TopologyError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(ERROR)
    except TestbedError as error:
        if os.environ.get("TESTBED_DEBUG"):
            traceback.print_exc()
        err.print(f"testbed: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ERROR)


def run_async(work: Coroutine[Any, Any, int]) -> None:
    """Run to its end and exit with its code; SIGINT and SIGTERM cancel it, and everything is taken down before we exit."""
    caught: list[signal.Signals] = []

    async def guarded() -> int:
        task = asyncio.create_task(work)

        def stop(number: signal.Signals) -> None:
            caught.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await task

    try:
        code = asyncio.run(guarded())
    except asyncio.CancelledError:
        if not caught:
            raise
        err.print(f"testbed: stopped by {caught[0].name}; guests are gone", markup=False)
        code = 128 + caught[0]
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"testbed {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    del version


# Verbs -------------------------------------------------------------------------------------------------------------------------------


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """What this host can do, what is missing, and how to mend it."""

    async def work() -> int:
        folders = paths.folders()
        host: Host | None = None
        why = ""
        try:
            known = load_table(paths.shipped("images") / "kernels.yaml")
            kernels = (kernel_files.cached(row, folders.cache) for row in known.rows.values())
            host = await probe.probe(folders.cache, next((found for found in kernels if found), None))
        except HostError as error:
            why = str(error)
        complaints = await doctor.complaints(host)
        fatal = [complaint for complaint in complaints if complaint.fatal]
        if as_json:
            facts = asdict(host) | {"accelerator": host.accelerator} if host else None
            print(json.dumps({"host": facts, "tools": doctor.tools(), "problems": [asdict(c) for c in complaints], "error": why or None}))
        else:
            if host is not None:
                out.print(table.host_table(host, doctor.tools()))
            else:
                out.print(why, markup=False, highlight=False)
            for complaint in complaints:
                kind = "problem" if complaint.fatal else "slower"
                out.print(f"{kind}: {complaint.what}\n    mend: {complaint.mend}", markup=False, highlight=False, soft_wrap=True)
            if not fatal and host is not None:
                out.print("This machine can run the testbed.")
        return ERROR if fatal or host is None else 0

    run_async(work())


@app.command()
def validate(files: Annotated[list[Path], typer.Argument(help="Topology files.")]) -> None:
    """Check topology files: all errors at once, each with file, line and column."""
    problems: list[Problem] = []
    for file in files:
        try:
            load(file)
        except TopologyError as error:
            problems += error.problems
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(FAILED)
    err.print(f"{len(files)} valid", highlight=False)


@app.command("plan")
def plan_command(file: Annotated[Path, typer.Argument(help="Topology file.")]) -> None:
    """Print the QEMU argv and the ordered QMP commands of each guest; runs nothing."""

    async def work() -> int:
        topology = load(file)
        host = await probe.probe(paths.folders().cache, None)
        for name, model in topology.guests.items():
            print(f"# guest {name}")
            machine = plan.machine(host, model, kernel="KERNEL", image="IMAGE", initramfs="INITRAMFS")
            files = plan.BootFiles(
                bzimage=Path("BZIMAGE"), initramfs=Path("INITRAMFS"), root=Path("ROOT.ext4"), modules_disk=Path("MODULES.ext4")
            )
            options = plan.argv(host, machine, files, name=name, sockets=Path("SOCKETS"), memory=plan.ANONYMOUS)
            print(" \\\n    ".join(" ".join(option) for option in options))
            for port, (disk_name, disk) in enumerate(model.disks.items()):
                for command in plan.hotplug(disk_name, disk, port, Path(f"SCRATCH/{disk_name}.raw")):
                    print(json.dumps({"execute": command.execute, "arguments": command.arguments}))
        return 0

    run_async(work())


@app.command()
def compare(
    scenarios: Scenarios = None,
    base: Annotated[str | None, typer.Option("--base", help=f"Kernel before the series. {KERNEL_HELP}")] = None,
    patched: Annotated[str | None, typer.Option("--patched", help="Kernel with the series.")] = None,
    topology: TopologyOption = None,
    cold: Cold = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on a base kernel and a patched one, and say whether the series does what it claims."""

    async def work() -> int:
        chosen = select(tuple(scenarios or ()))
        model = _only_guest(topology)
        known = load_table(paths.shipped("images") / "kernels.yaml")
        specs = {"base": base or known.base, "patched": patched or known.patched}

        async def pairs(stage: _Stage) -> tuple[Result, ...]:
            return await runner.compare(stage.lab, chosen, model, stage.kernels, stage.folder, stage.on_step, stage.on_result)

        return await _run(specs, model, pairs, cold=cold, quiet=quiet, as_json=as_json)

    run_async(work())


@app.command()
def run(
    scenarios: Scenarios = None,
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", help=KERNEL_HELP)] = None,
    expect: Annotated[str, typer.Option("--expect", help="charged, bypass, or auto: what the kernel table says of this kernel.")] = "auto",
    topology: TopologyOption = None,
    cold: Cold = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on one kernel."""

    async def work() -> int:
        chosen = select(tuple(scenarios or ()))
        model = _only_guest(topology)
        wanted = {"auto": None, "charged": Charge.CHARGED, "bypass": Charge.BYPASSED}
        if expect not in wanted:
            raise UsageError(f"--expect {expect}: expected one of {', '.join(wanted)}")
        known = load_table(paths.shipped("images") / "kernels.yaml")

        async def singles(stage: _Stage) -> tuple[Result, ...]:
            one = stage.kernels["kernel"]
            expected = wanted[expect] or runner.expected_of(one)
            return await runner.run_single(stage.lab, chosen, model, one, stage.folder, expected, stage.on_step, stage.on_result)

        return await _run({"kernel": kernel or known.patched}, model, singles, cold=cold, quiet=quiet, as_json=as_json)

    run_async(work())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What a run works with, and whom it tells."""

    lab: Lab
    kernels: dict[str, KernelFiles]
    folder: Path
    on_step: runner.OnStep
    on_result: runner.OnResult


async def _run(
    specs: dict[str, str],
    model: Guest,
    work: Callable[[_Stage], Awaitable[tuple[Result, ...]]],
    *,
    cold: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Open the lab, run, write, print; the exit code."""
    with live.progress(err, quiet=quiet) as progress:
        async with open_lab(progress, kernels=tuple(specs.values()), cold=cold) as lab:
            kernels = {side: await lab.kernel(spec) for side, spec in specs.items()}
            folder = results.new_run_folder(lab.folders.runs)
            _announce(lab, kernels, model, progress)
            with contextlib.ExitStack() as bars:
                stage = _Stage(
                    lab=lab,
                    kernels=kernels,
                    folder=folder,
                    on_step=_steps(progress, bars),
                    on_result=lambda result: progress.note(f"{result.scenario.name}: {result.judgement.verdict.value}"),
                )
                finished = await work(stage)
    verdict = overall(tuple(result.judgement.verdict for result in finished))
    document = results.document(folder, verdict, sys.argv, lab.host, lab.image, kernels, finished)
    results.write(document, folder)
    if as_json:
        print(json.dumps(document))
    else:
        out.print(table.results_table(finished, kernels))
        table.show_losses(finished, out)
        out.print(f"verdict: {verdict.value}", highlight=False)
        print(folder)
    return EXIT_CODES[verdict]


def _announce(lab: Lab, kernels: dict[str, KernelFiles], model: Guest, progress: Progress) -> None:
    how = "KVM" if lab.host.accelerator == "kvm" else "TCG, QEMU's own emulation (`testbed doctor` says why)"
    clones = "booted cold" if lab.cold else "cloned from templates"
    progress.note(f"QEMU {lab.host.qemu.version} on {how}; {runner.slots(lab.host, model)} guests at once, {clones}")
    for side, kernel in kernels.items():
        progress.note(f"{side}: {kernel.release} ({kernel.origin})")


def _steps(progress: Progress, bars: contextlib.ExitStack) -> runner.OnStep:
    """Shows each scenario's guests as they go."""
    shown: dict[tuple[str, str], tuple[contextlib.ExitStack, Task]] = {}

    def on_step(scenario: str, side: str, step: str) -> None:
        key = (scenario, side)
        if key not in shown:
            own = bars.enter_context(contextlib.ExitStack())
            shown[key] = (own, own.enter_context(progress.task(f"{scenario} on {side}")))
        own, task = shown[key]
        if step == "done":
            own.close()
        else:
            task.update(detail=step)

    return on_step


def _only_guest(file: Path | None) -> Guest:
    path = file or paths.shipped("topologies") / "default.yaml"
    topology: Topology = load(path)
    if len(topology.guests) != 1:
        raise UsageError(f"{path}: scenarios run on a topology of one guest, this one has {', '.join(topology.guests)}")
    return next(iter(topology.guests.values()))


# Images and kernels ------------------------------------------------------------------------------------------------------------------


@image_app.command("build")
def image_build(name: Annotated[str, typer.Argument(help="Recipe.")] = IMAGE, quiet: Quiet = False) -> None:
    """Build a guest image, if the cache does not have it."""

    async def work() -> int:
        with live.progress(err, quiet=quiet) as progress:
            built = await image.build(name, paths.shipped("images"), paths.folders().cache, progress)
        print(built.folder)
        return 0

    run_async(work())


@image_app.command("list")
def image_list() -> None:
    """The recipes, and which of them are built."""
    root = paths.folders().cache
    for name in image.names(paths.shipped("images")):
        folder = image.image_folder(name, paths.shipped("images"), root)
        print(f"{name}\t{folder if (folder / cache.META).is_file() else 'not built'}")


@image_app.command("rm")
def image_rm(name: Annotated[str, typer.Argument(help="Recipe.")]) -> None:
    """Remove a built image; the next run builds it again."""
    folder = image.image_folder(name, paths.shipped("images"), paths.folders().cache)
    if not folder.exists():
        raise UsageError(f"image {name!r}: it is not built")
    shutil.rmtree(folder)


@kernel_app.command("fetch")
def kernel_fetch(
    names: Annotated[list[str] | None, typer.Argument(help=f"{KERNEL_HELP} The default pair without any.")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Ask the mirror again for the newest version.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fetch kernels, if the cache does not have them."""

    async def work() -> int:
        known = load_table(paths.shipped("images") / "kernels.yaml")
        root = paths.folders().cache
        with live.progress(err, quiet=quiet) as progress:
            for name in names or (known.base, known.patched):
                fetched = await kernel_files.fetch(known.resolve(name), root, progress, renew=renew)
                out.print(f"{name}\t{fetched.release}\t{fetched.origin}", highlight=False, soft_wrap=True)
        return 0

    run_async(work())


@kernel_app.command("list")
def kernel_list() -> None:
    """The kernels of the table, and what of them is in the cache."""
    known = load_table(paths.shipped("images") / "kernels.yaml")
    root = paths.folders().cache
    for name, row in known.rows.items():
        found = kernel_files.cached(row, root)
        role = "base" if name == known.base else "patched" if name == known.patched else ""
        print("\t".join((name, row.series.value, role, f"{found.release} ({found.origin})" if found else "not fetched")))
