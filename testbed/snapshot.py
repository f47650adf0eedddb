"""Saves a running guest with its disks, while it stands still for a moment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from testbed import drives, machine, states
from testbed.errors import HostError, UsageError
from testbed.guest import Guest
from testbed.store import snapshots
from testbed.store.snapshots import Snapshot


async def save(guest: Guest, folder: Path, order: dict[str, Any]) -> Snapshot:
    """Make a snapshot in a new `folder`; the guest goes on afterwards, also where it could not be saved.

    :raise UsageError: it has a balloon. :raise HostError: QEMU cannot save one of its devices (NVMe in those that we know); says which.
    :raise GuestError: it does not answer.
    """
    if await machine.has_balloon(guest):
        raise UsageError(
            f"{guest.name} cannot be saved: a balloon has been plugged in for `memory`, which a guest that goes on would not have"
        )
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    (unfinished / "disks").mkdir(mode=0o700)
    try:
        await guest.freeze()
        try:
            await guest.monitor.execute("stop")
            await _save(guest, unfinished)
        finally:
            await guest.thaw()
        key = guest.order.machine.key
        snapshots.record(unfinished, host_key=guest.order.identity, boot_s=guest.boot_s, machine=key, order=order)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return snapshots.read(folder)


async def _save(guest: Guest, folder: Path) -> None:
    version, model = guest.order.host.qemu.version, guest.order.model
    try:
        await guest.wait(states.write(guest.monitor, folder / "state"), guest.order.deadlines.restore_s)
    except HostError as error:
        if "non-migratable" not in str(error):
            raise
        # Of those that we know, QEMU's nvme cannot be saved.
        disks = [f"{name} ({disk.type})" for name, disk in model.disks.items()]
        unsaved = [said for said in disks if "nvme" in said and "nvme" in str(error)] or disks
        raise HostError(
            f"{guest.name} cannot be saved: QEMU {version} cannot save a guest with {', '.join(unsaved)}; a guest to be saved has"
            f" virtio-blk disks only: {error}"
        ) from error
    # QEMU has written out all that it held of them.
    files = [store.file for name, disk in model.disks.items() for store in drives.storage(name, disk, guest.order.scratch)]
    for file in (guest.order.overlay, *files):
        await snapshots.copy(file, folder / "disks" / file.name)
