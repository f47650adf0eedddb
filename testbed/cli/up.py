"""Starts VMs, which go on running when the command ends: up, fork."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from testbed.cli.app import ERROR, KERNEL_HELP, Cold, Json, Quiet, app, err, in_run_folder, out, run_async
from testbed.cli.snapshots import SAVING_S, complete_snapshots
from testbed.cli.vms import VmArgument
from testbed.guest import session
from testbed.host import paths, registry
from testbed.host.control_client import ControlClient
from testbed.report import live
from testbed.store import snapshot_files
from testbed.store.kernels.table import shipped_table
from testbed.topology import Topology, load, trust
from testbed.topology.host_limits import HostLimits
from testbed.topology.kernel_abilities import KernelAbilities
from testbed.vms import launcher, prefork, supervisor_main
from testbed.vms.launcher import GuestRequest, LaunchRequest
from testbed.vms.prefork import PreforkedWorker

Point = Annotated[str | None, typer.Option("--point", help="A point of its matrix, such as disk=nvme,filesystem=xfs.")]
Kernel = Annotated[str | None, typer.Option("--kernel", "-k", help=f"For all its guests. {KERNEL_HELP}")]
Name = Annotated[str | None, typer.Option("--name", help="The guest's name; several guests get it as a prefix.")]
Logs = Annotated[
    Path | None,
    typer.Option(
        "--logs", help="A folder for the guests' logs, with a folder in it for each; a new run's folder by default."
    ),
]
AtOnce = Annotated[bool, typer.Option("--at-once", help="Do not wait until this machine has enough cores and memory.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """Options of `up`, as they were given."""

    file: Path
    point: str | None
    kernel: str | None
    name: str | None
    logs: Path | None
    cold: bool
    at_once: bool
    as_json: bool
    quiet: bool


@app.command("up")
def up_command(
    file: Annotated[Path, typer.Argument(help="Topology file.")],
    point: Point = None,
    kernel: Kernel = None,
    name: Name = None,
    logs: Logs = None,
    cold: Cold = False,
    at_once: AtOnce = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Start the guests of a topology, with their disks, stacks and control groups, and leave them running."""
    _up(
        UpOptions(
            file=file,
            point=point,
            kernel=kernel,
            name=name,
            logs=logs,
            cold=cold,
            at_once=at_once,
            as_json=as_json,
            quiet=quiet,
        )
    )


def _up(options: UpOptions) -> None:
    table = shipped_table()
    check = KernelAbilities(table, paths.cache_folder(), options.kernel, default=table.patched).mistakes
    topology = load(options.file, options.point, limits=HostLimits.of_this_host(), check_kernels=check)
    for model in topology.guests.values():
        trust.check_trusted(model.qemu_args)
    names = launcher.guest_names(topology, options.name)
    with prefork.fork_workers(len(topology.guests), _serve) as workers:
        run_async(_start(options, topology, names, workers))


async def _start(
    options: UpOptions, topology: Topology, names: Mapping[str, str], workers: tuple[PreforkedWorker, ...]
) -> int:
    table = shipped_table()
    folders, logs = paths.folders(), options.logs
    launcher.check_free(names.values(), folders)
    run = paths.new_run_folder(folders.runs) if logs is None else logs.absolute()
    run_folder = in_run_folder(run) if logs is None else contextlib.nullcontext()
    request = LaunchRequest(
        topology=topology,
        file=options.file.resolve(),
        point=options.point or "",
        guests=tuple(
            GuestRequest(
                guest=guest,
                name=names[guest],
                kernel=table.absolute(options.kernel or model.kernel or table.patched),
                logs=run / (names[guest] if logs is None else guest),
            )
            for guest, model in topology.guests.items()
        ),
        cold=options.cold,
        at_once=options.at_once,
    )
    with run_folder, live.progress(err, quiet=options.quiet) as progress:
        started = await launcher.start_vms(request, folders, progress, workers)
    if options.as_json:
        print(json.dumps([asdict(vm.record) for vm in started]))
    elif not options.quiet:
        for vm in started:
            name = vm.record.name
            out.print(
                f"{name}: {vm.record.release}; enter it with: testbed ssh {name}", highlight=False, soft_wrap=True
            )
    return 0


def _serve(connection: socket.socket) -> NoReturn:
    supervisor_main.serve(connection, run_async, ERROR)


@app.command()
def fork(
    vm: VmArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The name of the new guest.")],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="A snapshot of it; its current state by default.", autocompletion=complete_snapshots
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Start a copy of a guest, in its current state or that of a snapshot, with copies of its disks."""

    async def work(workers: tuple[PreforkedWorker, ...]) -> int:
        folders = paths.folders()
        launcher.check_name(new)
        launcher.check_free((new,), folders)
        # A snapshot of the current state is removed with this session.
        with session.open_session(folders) as own:
            if from_ is not None:
                saved = snapshot_files.find_snapshot(folders.state, vm, from_)
            else:
                folder = own.scratch / vm / "now"
                await ControlClient(registry.find_vm(folders, vm)).snapshot(folder, timeout_s=SAVING_S)
                saved = snapshot_files.read_snapshot(folder)
            run = paths.new_run_folder(folders.runs)
            with in_run_folder(run), live.progress(err, quiet=quiet) as progress:
                started = await launcher.fork_vms(
                    saved, new, folders=folders, run=run, progress=progress, workers=workers
                )
        if not quiet:
            out.print(f"{new}: enter it with: testbed ssh {started.record.name}", highlight=False, soft_wrap=True)
        return 0

    with prefork.fork_workers(1, _serve) as workers:
        run_async(work(workers))
