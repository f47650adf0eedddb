"""Verbs that start guests which stay: up, fork."""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from testbed import paths, probe, supervisor, up, vms
from testbed.cli.app import KERNEL_HELP, Cold, Json, Quiet, app, err, out, run_async
from testbed.cli.snapshots import SAVING_S, known
from testbed.cli.vms import VmArgument
from testbed.kernels import load_table
from testbed.report import live
from testbed.store import snapshots
from testbed.topology import load


@app.command("up")
def up_command(
    file: Annotated[Path, typer.Argument(help="Topology file.")],
    point: Annotated[str | None, typer.Option("--point", help="A point of its matrix, such as disk=nvme,filesystem=xfs.")] = None,
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", help=f"For all its guests. {KERNEL_HELP}")] = None,
    name: Annotated[str | None, typer.Option("--name", help="What the guest is called; several get it before their own names.")] = None,
    cold: Cold = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Start a topology's guests and leave them running, with their disks, stacks and control groups, as the file says."""

    async def work() -> int:
        topology = load(file, point, host_memory=probe.host_memory())
        default = load_table(paths.shipped("images") / "kernels.yaml").patched
        folders = paths.folders()
        with live.progress(err, quiet=quiet) as progress:
            started = await up.start(
                topology,
                file=file.resolve(),
                point=point or "",
                called=up.names(topology, name),
                kernels={guest: kernel or model.kernel or default for guest, model in topology.guests.items()},
                folders=folders,
                evidence=paths.new_run_folder(folders.runs),
                cold=cold,
                progress=progress,
            )
        if as_json:
            print(json.dumps([asdict(vm.record) for vm in started]))
        elif not quiet:
            for vm in started:
                out.print(
                    f"{vm.record.name}: {vm.record.release}; enter it with: testbed ssh {vm.record.name}", highlight=False, soft_wrap=True
                )
        return 0

    run_async(work())


@app.command("supervise", hidden=True)
def supervise_command() -> None:
    """Keep one guest; its order is a line of JSON on standard input. Started by `up`."""
    order = supervisor.UpOrder.from_json(sys.stdin.readline())

    def say(message: dict[str, object]) -> None:
        try:
            print(json.dumps(message), flush=True)
        except OSError:
            return
        if "ready" in message:
            # Whoever started us goes on; nothing of ours must hold its ends open.
            for number in (0, 1):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)

    os.chdir("/")
    run_async(supervisor.supervise(order, say))


@app.command()
def fork(
    vm: VmArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="What the other guest is called.")],
    from_: Annotated[str | None, typer.Option("--from", help="A snapshot of it; without one, as it is now.", autocompletion=known)] = None,
    quiet: Quiet = False,
) -> None:
    """Start another guest that is what this one is, or was at a snapshot, with copies of its disks."""

    async def work() -> int:
        folders = paths.folders()
        if from_ is not None:
            saved = snapshots.find(folders.state, vm, from_)
        else:
            folder = snapshots.snapshot_folder(folders.state, vm, f"fork-{secrets.token_hex(4)}")
            await vms.find(folders, vm).ask("snapshot", timeout_s=SAVING_S, folder=str(folder))
            saved = snapshots.read(folder)
        try:
            with live.progress(err, quiet=quiet) as progress:
                started = await up.fork(saved, new, folders=folders, evidence=paths.new_run_folder(folders.runs), progress=progress)
        finally:
            if from_ is None:
                snapshots.remove(saved)
        if not quiet:
            out.print(f"{new}: enter it with: testbed ssh {started.record.name}", highlight=False, soft_wrap=True)
        return 0

    run_async(work())
