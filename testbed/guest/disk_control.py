"""Changes a running guest's disks: limits, delays, errors, hangs, hot-unplug, size.

Every change is checked before anything happens, and read back from QEMU afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from testbed.errors import HostError, TestbedError, UsageError
from testbed.guest.disk_filters import DiskFilters
from testbed.guest.guest_monitor import GuestMonitor
from testbed.guest.hotplug import Hotplug
from testbed.guest.launch_spec import LaunchSpec
from testbed.hardware import commands
from testbed.hardware.disk_kinds import DISK_KINDS
from testbed.hardware.faults import DEAD, FLUSH, MOST_RULES, Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.throttle import Throttle, from_qemu_limits
from testbed.host.logfile import OnFailure
from testbed.qemu import blockdev, io_errors
from testbed.qemu.io_errors import IoErrors
from testbed.topology.disks import Disk
from testbed.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCondition:
    """How a disk is made to behave now."""

    throttle: Throttle
    latency: Latency = NO_DELAY
    faults: tuple[Fault, ...] = ()


class DiskControl:
    """Controls all disks of one guest. The exports write their logs into the guest's log folder.

    `on_trouble` is called if an export ends by itself. `limits_changed` counts changes of limits, each after it was
    made.
    """

    def __init__(self, qmp: GuestMonitor, spec: LaunchSpec, hotplug: Hotplug, on_trouble: OnFailure) -> None:
        self.errors = IoErrors()
        self.limits_changed = 0
        self._qmp, self._hotplug, self._model = qmp, hotplug, spec.model
        self._disks = {
            name: DiskFilters(name, owner, qmp, spec, on_trouble)
            for owner, disk in spec.model.disks.items()
            for name in (owner, *blockdev.namespaces(disk))
        }

    # Which disks there are -------------------------------------------------------------------------------------------

    def disk(self, name: str) -> Disk:
        """Return the disk of that name, or the disk that has a namespace of that name.

        :raise UsageError: no disk has that name, or it is unplugged.
        """
        if name in self._model.throttle_groups and name not in self._disks:
            raise UsageError(f"expected a disk, got {name!r}, which is a throttle group; name one of its disks")
        if name not in self._disks:
            raise UsageError(
                f"expected one of the guest's disks ({', '.join(self.names()) or 'it has none'}), got {name!r}"
            )
        if self._disks[name].unplugged:
            raise UsageError(f"disk {name}: it is unplugged")
        return self._disks[name].disk

    def is_unplugged(self, name: str) -> bool:
        """Return whether a disk is unplugged.

        :raise UsageError: no disk has that name.
        """
        return (name in self._disks and self._disks[name].unplugged) or not self.disk(name)

    def names(self) -> Iterable[str]:
        """Return the names of all disks and namespaces that are plugged in."""
        return (name for name, state in self._disks.items() if not state.unplugged)

    async def condition(self, name: str) -> DiskCondition:
        """Return how a disk behaves now; its limits are read from QEMU."""
        limits = await self._qmp.limits(blockdev.throttle_group(name, self.disk(name)))
        state = self._disks[name]
        return DiskCondition(throttle=from_qemu_limits(limits), latency=state.latency, faults=state.faults)

    async def errors_of(self, name: str) -> list[str]:
        """Return the errors of a disk until now, one text for each kind."""
        counters = await self._qmp.execute("query-blockstats", log=False)
        return self.errors.describe(name, io_errors.failed_requests(counters, name))

    @contextlib.asynccontextmanager
    async def _changing(self, name: str) -> AsyncIterator[DiskFilters]:
        """Lock a disk, so that one change is made at a time."""
        self.disk(name)
        async with self._disks[name].changing:
            self.disk(name)
            yield self._disks[name]

    # Limits ----------------------------------------------------------------------------------------------------------

    async def throttle(self, name: str, throttle: Throttle) -> None:
        """Set the limits of a disk, and of all disks in its throttle group.

        :raise UsageError: there is no such disk, or QEMU would refuse the limits.
        :raise HostError: QEMU has other limits afterwards.
        """
        group = blockdev.throttle_group(name, self.disk(name))
        _refuse(name, throttle.mistakes())
        arguments = {"path": f"/objects/{group}", "property": "limits", "value": throttle.limits()}
        async with self._changing(name):
            await self._qmp.execute("qom-set", arguments)
            self.limits_changed += 1
            now = await self._qmp.limits(group)
        differing = {key: now.get(key) for key, value in throttle.limits().items() if now.get(key) != value}
        if differing:
            raise HostError(f"disk {name}: QEMU's limits are not those that were set: {differing}")

    # Delays, faults, a hang ------------------------------------------------------------------------------------------

    async def apply_topology(self) -> None:
        """Give each disk the volatile cache and the delays of its topology."""
        for name, disk in self._model.disks.items():
            if disk.cache is not None:
                await self._disks[name].require_export()
            await self.delay(name, blockdev.latency_of(disk))

    async def delay(self, name: str, latency: Latency) -> None:
        """Delay each request of a disk from now on.

        :raise UsageError: there is no such disk, or it hangs.
        """
        if latency.none:  # also a jitter of 0
            latency = NO_DELAY
        async with self._changing(name) as state:
            if latency.none and state.export is None:
                return
            _refuse(name, state.hang_mistakes())
            await state.require_export()
            for export in state.exports:
                await export.set_latency(latency)
            state.latency = latency
            await state.remove_idle_export()

    async def inject(self, name: str, faults: tuple[Fault, ...]) -> None:
        """Make requests of a disk fail by exactly these faults; none clears all of them.

        :raise UsageError: there is no such disk or no such fault, or the disk hangs.
        """
        async with self._changing(name) as state:
            _refuse(name, (mistake for fault in faults for mistake in fault.mistakes()))
            _refuse(name, state.hang_mistakes())
            in_export = tuple(fault for fault in faults if not fault.in_qemu)
            _check_places(name, state, in_export)
            if state.export is not None:
                await state.export.set_faults(())  # QEMU flushes the disk before it changes the block graph
            await state.change(errors=tuple(fault for fault in faults if fault.in_qemu))
            if in_export:
                await (await state.require_export()).set_faults(in_export)
            state.faults = faults
            await state.remove_idle_export()

    async def hang(self, name: str, seconds: float) -> None:
        """Complete no request of a disk for a while; 0 ends a hang.

        :raise UsageError: there is no such disk, or the time is out of range.
        """
        async with self._changing(name) as state:
            if not 0 <= seconds <= 3600:
                raise UsageError(f"disk {name}: expected 0 to 3600 seconds, got {seconds}")
            if not seconds and state.export is None:
                return
            if state.hang_end is not None:
                state.hang_end.cancel()
            await state.require_export()
            for export in state.exports:
                await export.hold(seconds)
            state.hangs_until = time.monotonic() + seconds
            state.hang_end = asyncio.create_task(self._end_hang(name, seconds))

    async def _end_hang(self, name: str, seconds: float) -> None:
        """Remove the export after a hang, so that the disk is as fast as before."""
        await asyncio.sleep(seconds)
        with contextlib.suppress(TestbedError):  # the disk, or the guest, is gone
            async with self._changing(name) as state:
                await state.remove_idle_export()

    # Hot-plug and size -----------------------------------------------------------------------------------------------

    def _hot(self, name: str) -> Disk:
        """Return a disk that can be hot-plugged."""
        disk = self._model.disks.get(name)
        if disk is None:
            self.disk(name)
            raise UsageError(
                f"disk {name}: expected a whole disk, got a namespace, which cannot be hot-plugged by itself"
            )
        if disk.cold:
            raise UsageError(
                f"disk {name}: it is plugged when the guest boots, and cannot be taken out or put in later"
            )
        return disk

    async def unplug(self, name: str, *, surprise: bool = False) -> None:
        """Unplug a disk, whatever in the guest uses it; its contents are kept for `plug`.

        `surprise`: the disk fails every request before the guest is told, also the writes by which the guest would
        flush it.

        :raise UsageError: there is no such disk, or it cannot be hot-plugged. :raise GuestError: the guest does not
        release it.
        """
        self._hot(name)
        await self.hang(name, 0)
        await self.delay(name, NO_DELAY)
        await self.inject(name, DEAD if surprise else ())
        async with self._changing(name) as state:
            await self._hotplug.delete_device(name, state.disk)
            if state.export is not None:
                await state.export.lose_cache(0.0, 0)  # it has lost power
                await state.export.set_faults(())
            await state.change(errors=(), export=False, image=False)
            await state.close_exports()
            await self._hotplug.remove_storage(name, state.disk, keep=True)
            state.faults, state.unplugged = (), True

    async def plug(self, name: str) -> None:
        """Plug a disk in again, as its topology describes it, with the contents that it had.

        :raise UsageError: it is plugged in already.
        """
        disk, state = self._hot(name), self._disks[name]
        async with state.changing:
            if not state.unplugged:
                raise UsageError(f"disk {name}: it is plugged in already")
            await self._hotplug.plug(name, disk, tuple(self._model.disks).index(name), again=True)
            state.unplugged = False
            self.limits_changed += 1  # they are those of its topology again
            if disk.cache is not None:
                await state.require_export()
        await self.delay(name, blockdev.latency_of(disk))

    async def resize(self, name: str, size_bytes: int) -> None:
        """Give a disk another size; what is beyond a smaller one is lost.

        :raise UsageError: there is no such disk, or it cannot have that size now. :raise HostError: QEMU refuses it.
        """
        async with self._changing(name) as state:
            step = max(4096, state.disk.logical_block_size)
            if size_bytes <= 0 or size_bytes % step:
                raise UsageError(f"disk {name}: expected a multiple of {step} bytes, got {size_bytes}")
            if keeps := DISK_KINDS[state.disk.type].keeps_size:
                raise UsageError(f"disk {name}: {keeps}")
            if state.export is not None:
                raise UsageError(
                    f"disk {name}: it cannot change its size while it has a cache, delays, a hang, or faults of the"
                    " export; take them away"
                )
            await self._qmp.execute("block_resize", {"node-name": blockdev.top_node(name), "size": size_bytes})

    async def cut_power(self, share: float, seed: int) -> dict[str, int]:
        """End all requests of the disks with a volatile cache, and lose what is only in it, but for a random `share` of
        the blocks.

        Returns how many blocks each disk lost. The guest cannot be used afterwards.
        """
        exports = {name: state.export for name, state in self._disks.items() if state.export is not None}
        return {name: await export.lose_cache(share, seed, end=True) for name, export in exports.items()}

    async def close(self) -> None:
        """End the export processes of all disks."""
        for state in self._disks.values():
            await state.close()


def _check_places(name: str, state: DiskFilters, faults: Iterable[Fault]) -> None:
    """Check that the places of faults of the export are on the disk.

    :raise UsageError: one begins beyond the disk's end, or the export does not see the disk's addresses.
    """
    storage, faults = state.storage, tuple(faults)
    placed = tuple(fault for fault in faults if fault.operation != FLUSH)
    if placed and storage is not None and storage.format == "qcow2":
        got = commands.format_faults(placed)[0]
        raise UsageError(
            f"disk {name}: expected errors of the whole disk, always or up to {MOST_RULES} times, got {got}:"
            " it is kept in qcow2, whose file has its bytes elsewhere; use a raw one"
        )
    size_bytes = storage.file.stat().st_size if storage is not None else state.disk.size
    for fault in faults:
        if fault.first >= size_bytes:
            got = commands.format_faults((fault,))[0]
            raise UsageError(
                f"disk {name}: expected a range that begins within its {format_size(size_bytes)}, got {got}"
            )


def _refuse(name: str, mistakes: Iterable[str]) -> None:
    """Raise UsageError if there are any mistakes."""
    found = list(mistakes)
    if found:
        raise UsageError("\n".join(f"disk {name}: {mistake}" for mistake in found))
