"""Verbs for guests that are saved: snapshot, restore."""

from __future__ import annotations

from typing import Annotated

import typer

from testbed.cli.app import app, run_async
from testbed.cli.vms import VmArgument
from testbed.errors import UsageError
from testbed.host import paths, registry
from testbed.host.control_client import ControlClient
from testbed.store import snapshot_files

# Saving writes the guest's memory, and a restored guest answers once it has woken up.
SAVING_S = 600.0


def known(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell's completion."""
    own = [
        one
        for one in snapshot_files.list_snapshots(paths.folders().state)
        if one.folder.parent.name == context.params.get("vm")
    ]
    return [one.folder.name for one in own if one.folder.name.startswith(incomplete)]


NameArgument = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Its name.", autocompletion=known)]


@app.command()
def snapshot(
    vm: VmArgument,
    name: Annotated[
        str | None, typer.Argument(metavar="SNAPSHOT", help="Its name; without one, list those of the guest.")
    ] = None,
    remove: Annotated[bool, typer.Option("--rm", help="Remove it instead.")] = False,
) -> None:
    """Save a guest with its memory and disks under a name; it stands still for that moment, and goes on. None with an NVMe disk."""
    state = paths.folders().state
    if name is None:
        if remove:
            raise UsageError("snapshot --rm: expected the name of a snapshot, got none")
        for one in snapshot_files.list_snapshots(state):
            if one.folder.parent.name == vm:
                print(one.folder.name)
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
    """Bring a guest back to a snapshot of it: what it did since is gone, and its SSH port is another. Also for a guest that is lost."""
    found = snapshot_files.find_snapshot(paths.folders().state, vm, name)

    async def work() -> int:
        await ControlClient(registry.find_vm(paths.folders(), vm)).restore(found.folder, timeout_s=SAVING_S)
        return 0

    run_async(work())
