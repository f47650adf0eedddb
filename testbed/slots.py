"""The hot-plug slots of one guest's machine: disks put into them, and taken out again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from testbed import drives
from testbed.drives import Arrangement, QmpCommand, Storage
from testbed.lifecycle import Deadlines
from testbed.monitor import Monitor
from testbed.store import disk_files
from testbed.topology.disks import Disk
from testbed.topology.model import Guest as GuestModel

# Waits no longer than that many seconds, nor longer than the guest lives.
Wait = Callable[[Awaitable[Any], float], Awaitable[Any]]


class Slots:
    """`scratch`: where the disks' files are, which go with the guest."""

    def __init__(self, monitor: Monitor, wait: Wait, scratch: Path, deadlines: Deadlines) -> None:
        self._monitor, self._wait, self._scratch, self._deadlines = monitor, wait, scratch, deadlines
        self._gone: dict[str, asyncio.Event] = {}

    async def prepare(self, model: GuestModel) -> Arrangement:
        """Make the files of all disks of a topology; returns the commands for them."""
        return drives.arranged(model, {name: await self._storage(name, disk) for name, disk in model.disks.items()})

    async def fill(self, commands: tuple[QmpCommand, ...]) -> None:
        """Put disks in whose files are there."""
        await self._wait(self._monitor.run(commands), self._deadlines.monitor_s)

    async def plug(self, name: str, disk: Disk, port: int) -> None:
        """Put a disk into the running guest.

        :raise HostError: its file cannot be made, or QEMU refuses it.
        """
        await self.fill(drives.plug(name, disk, port, await self._storage(name, disk)))

    async def unplug(self, name: str, disk: Disk) -> None:
        """Take a disk out of the running guest; the guest must agree (ACPI), so a deadline applies."""
        device = drives.pci_device(name, disk)
        gone = self._gone[device] = asyncio.Event()
        await self._monitor.execute("device_del", {"id": device})
        await self._wait(gone.wait(), self._deadlines.command_s)
        await self._monitor.run(drives.unplugged(name, disk))
        for store in drives.storage(name, disk, self._scratch):
            store.file.unlink(missing_ok=True)

    def on_deleted(self, device: str) -> None:
        """QEMU says that a device is gone."""
        if device in self._gone:
            self._gone[device].set()

    async def _storage(self, name: str, disk: Disk) -> tuple[Storage, ...]:
        wanted = drives.storage(name, disk, self._scratch)
        for store in wanted:
            await disk_files.make(store)
        return wanted
