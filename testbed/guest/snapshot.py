"""Saves a running guest with its disks; the guest is paused meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbed.errors import HostError, UsageError
from testbed.guest import cpu_memory
from testbed.guest.guest import Guest
from testbed.host import quota
from testbed.qemu import blockdev, migration
from testbed.store import snapshot_files
from testbed.store.snapshot_files import Snapshot


async def save_snapshot(guest: Guest, folder: Path, spec: dict[str, Any]) -> Snapshot:
    """Save a snapshot in a new `folder`; the guest goes on afterwards, even if it could not be saved.

    :raise UsageError: it has a balloon.
    :raise HostError: QEMU cannot save one of its devices (NVMe, in all versions that we know), or the disk is full, or
    becomes so.
    :raise GuestError: it does not answer.
    """
    if await cpu_memory.has_balloon(guest):
        raise UsageError(
            f"{guest.name} cannot be saved: a balloon has been plugged in for `memory`,"
            " which a restored guest would not have"
        )
    files = _disks(guest)
    leave_bytes = sum(file.lstat().st_blocks * 512 for file in files) + quota.MARGIN_BYTES
    with snapshot_files.new_snapshot(folder) as made:
        await guest.freeze()
        try:
            await guest.monitor.execute("stop")
            await _save_state(guest, made / "state", leave_bytes)
            # Saving the state has flushed the disks.
            for file in files:
                await snapshot_files.copy_disk(file, made / "disks" / file.name)
        finally:
            await guest.thaw()
        key = guest.spec.machine.key
        snapshot_files.write_record(made, host_key=guest.spec.identity, boot_s=guest.boot_s, machine=key, order=spec)
    return snapshot_files.read_snapshot(folder)


def _disks(guest: Guest) -> tuple[Path, ...]:
    """Return the files of this machine with the contents of the guest's disks."""
    stores = [
        store
        for name, disk in guest.model.disks.items()
        for store in blockdev.plan_storage(name, disk, guest.spec.scratch)
    ]
    return (guest.spec.overlay, *(store.file for store in stores))


async def _save_state(guest: Guest, path: Path, leave_bytes: int) -> None:
    """Save memory and device state. `leave_bytes`: what must stay free on the disk."""
    version, model = guest.spec.host.qemu.version, guest.model
    try:
        await guest.wait(migration.save_state(guest.monitor, path, leave_bytes=leave_bytes), guest.deadlines.restore_s)
    except HostError as error:
        if "non-migratable" not in str(error):
            raise
        # In all versions that we know, QEMU's nvme cannot be saved.
        disks = [f"{name} ({disk.type})" for name, disk in model.disks.items()]
        unsaved = [disk for disk in disks if "nvme" in disk and "nvme" in str(error)] or disks
        raise HostError(
            f"{guest.name} cannot be saved: QEMU {version} cannot save a guest with {', '.join(unsaved)};"
            f" a guest to be saved has virtio-blk disks only: {error}"
        ) from error
