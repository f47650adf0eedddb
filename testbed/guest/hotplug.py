"""Plugs disks and network interfaces into a guest's PCI slots, and unplugs disks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from testbed.guest.guest_monitor import GuestMonitor
from testbed.guest.launch_spec import LaunchSpec, Wait
from testbed.qemu import blockdev, disk_files, netdev
from testbed.qemu.blockdev import DiskCommands, Storage
from testbed.qemu.frame_switch import SwitchPort
from testbed.qemu.jail import Jail
from testbed.qemu.netdev import NetworkSockets
from testbed.qemu.qmp_command import QmpCommand
from testbed.store import snapshot_files
from testbed.store.snapshot_files import Snapshot
from testbed.topology.disks import Disk
from testbed.topology.model import GuestModel


class Hotplug:
    """The hot-plug slots of one guest. The disks' files are in its scratch folder, which is removed with the guest."""

    def __init__(self, qmp: GuestMonitor, wait: Wait, spec: LaunchSpec, jail: Jail) -> None:
        self._jail = jail
        self._qmp, self._wait, self._scratch, self._deadlines = qmp, wait, spec.scratch, spec.deadlines
        self._surviving_disks, self._disks = spec.surviving_disks, spec.model.disks
        self._deleted: dict[str, asyncio.Event] = {}
        self._ports: list[SwitchPort] = []

    async def prepare(self, model: GuestModel, wiring: NetworkSockets, snapshot: Snapshot | None) -> DiskCommands:
        """Make the files of all disks, empty or copied from a snapshot, and listen on the networks; returns QEMU's
        commands for them.

        With a snapshot all of them are cold: its devices must exist before its state is loaded.
        """
        disks = blockdev.plan_disks(
            model, {name: await self._storage(name, disk, snapshot) for name, disk in model.disks.items()}
        )
        if wiring.ends:
            wiring.own.mkdir(mode=0o700, exist_ok=True)
        for link in wiring.ends:
            others = tuple(wiring.inlet(link.network, peer) for peer, _ in link.peers)
            outlet, inlet = wiring.outlet(link.network), wiring.inlet(link.network, wiring.guest)
            self._ports.append(SwitchPort(outlet=outlet, inlet=inlet, others=others))
            self._ports[-1].open()
            self._jail.chown(outlet)
        hot = disks.hot + netdev.netdev_commands(wiring, len(model.disks))
        return DiskCommands(cold=disks.cold + hot, hot=()) if snapshot else replace(disks, hot=hot)

    async def make_overlay(self, file: Path, root: Path, snapshot: Snapshot | None) -> None:
        """Make the overlay that a guest's writes to its root disk go to: empty, or copied from a snapshot."""
        overlay = Storage(file=file, format="qcow2", size_bytes=root.stat().st_size, image=(root, "raw"))
        if snapshot is None:
            await disk_files.make_disk_files(overlay)
        else:
            await snapshot_files.copy_disk(snapshot.disk(file.name), file)
            disk_files.check_kept_disks(overlay)
        self._jail.chown(file)

    def move_disks_to(self, folder: Path) -> None:
        """Move the files of all disks into a folder, for another guest's `surviving_disks`; QEMU must have ended."""
        for name, disk in self._disks.items():
            for store in blockdev.plan_storage(name, disk, self._scratch):
                store.file.rename(folder / store.file.name)

    async def close(self) -> None:
        """Close the ports of the networks."""
        for port in self._ports:
            await port.close()

    async def plug_prepared(self, commands: tuple[QmpCommand, ...]) -> None:
        """Plug in what `prepare` has prepared; the guest cannot be used if QEMU refuses any of it."""
        await self._qmp.run_pipelined(commands)

    async def plug(self, name: str, disk: Disk, port: int, *, again: bool = False) -> None:
        """Plug a disk into the running guest; `again`: with the contents that it had when it was unplugged.

        :raise HostError: its file cannot be made, or QEMU refuses it.
        """
        made = blockdev.plan_storage(name, disk, self._scratch) if again else await self._storage(name, disk)
        commands = blockdev.plug_commands(name, disk, port, made)
        await self._qmp.run(commands)

    async def unplug(self, name: str, disk: Disk) -> None:
        """Unplug a disk of the running guest and delete its files; raises as `delete_device`."""
        await self.delete_device(name, disk)
        await self.remove_storage(name, disk)

    async def delete_device(self, name: str, disk: Disk) -> None:
        """Unplug a disk's device; the guest must release it, within a deadline.

        :raise GuestError: the guest does not release it.
        """
        device = blockdev.pci_device(name, disk)
        deleted = self._deleted[device] = asyncio.Event()
        await self._qmp.execute("device_del", {"id": device})
        await self._wait(deleted.wait(), self._deadlines.command_s)

    async def remove_storage(self, name: str, disk: Disk, *, keep: bool = False) -> None:
        """Remove the block nodes of a device that is unplugged, and its files unless `keep` is set."""
        await self._qmp.run(blockdev.unplug_commands(name, disk))
        if not keep:
            for store in blockdev.plan_storage(name, disk, self._scratch):
                store.file.unlink(missing_ok=True)

    def on_deleted(self, device: str) -> None:
        """Handle QEMU's event that a device was unplugged."""
        if device in self._deleted:
            self._deleted[device].set()

    async def _storage(self, name: str, disk: Disk, snapshot: Snapshot | None = None) -> tuple[Storage, ...]:
        stores = blockdev.plan_storage(name, disk, self._scratch)
        for store in stores:
            if snapshot is not None:
                await snapshot_files.copy_disk(snapshot.disk(store.file.name), store.file)
            elif self._surviving_disks is not None:
                (self._surviving_disks / store.file.name).rename(store.file)
            else:
                await disk_files.make_disk_files(store)
            disk_files.check_kept_disks(store)
            self._jail.chown(store.file)
        return stores
