"""Saves VMs and restores them: snapshot, restore."""

from __future__ import annotations

from typing import Annotated

import typer

from testbed.cli.app import app, run_async
from testbed.cli.vms import VmArgument
from testbed.errors import UsageError
from testbed.host import paths, registry
from testbed.host.control_client import ControlClient
from testbed.store import snapshot_files

# Saving writes the guest's memory; a restored guest answers once it has resumed.
SAVING_S = 600.0


def complete_snapshots(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the names of a VM's snapshots."""
    vm = context.params.get("vm")
    folders = [snapshot.folder for snapshot in snapshot_files.list_snapshots(paths.folders().state)]
    return [folder.name for folder in folders if folder.parent.name == vm and folder.name.startswith(incomplete)]


NameArgument = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Its name.", autocompletion=complete_snapshots)]


@app.command()
def snapshot(
    vm: VmArgument,
    name: Annotated[
        str | None, typer.Argument(metavar="SNAPSHOT", help="Its name; without one, list those of the guest.")
    ] = None,
    remove: Annotated[bool, typer.Option("--rm", help="Remove it instead.")] = False,
) -> None:
    """Save a guest with its memory and disks under a name; it is stopped meanwhile. Not possible with an NVMe disk."""
    state = paths.folders().state
    if name is None:
        if remove:
            raise UsageError("snapshot --rm: expected the name of a snapshot, got none")
        for saved in snapshot_files.list_snapshots(state):
            if saved.folder.parent.name == vm:
                print(saved.folder.name)
        return
    folder = snapshot_files.snapshot_folder(state, vm, name)
    if remove:
        snapshot_files.remove_snapshot(snapshot_files.find_snapshot(state, vm, name))
        return

    async def work() -> int:
        await ControlClient(registry.find_vm(paths.folders(), vm)).snapshot(folder, timeout_s=SAVING_S)
        return 0

    run_async(work())


@app.command()
def restore(vm: VmArgument, name: NameArgument) -> None:
    """Return a guest to a snapshot, also a lost one: what it did since is gone, and its SSH port changes."""
    found = snapshot_files.find_snapshot(paths.folders().state, vm, name)

    async def work() -> int:
        await ControlClient(registry.find_vm(paths.folders(), vm)).restore(found.folder, timeout_s=SAVING_S)
        return 0

    run_async(work())
