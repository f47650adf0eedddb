"""What a running guest's disks do on command: other limits, delays, errors, losses, a hang. Everything is checked before anything changes,
and read back from QEMU afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from testbed.errors import HostError, TestbedError, UsageError
from testbed.guest.hotplug import Hotplug
from testbed.guest.launch_spec import LaunchSpec, Wait
from testbed.hardware import commands as words
from testbed.hardware.disk_kinds import DISK_KINDS
from testbed.hardware.faults import DEAD, FLUSH, MOST_RULES, Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.throttle import Throttle, from_qemu_limits
from testbed.host.logfile import OnFailure
from testbed.qemu import block_filters, blockdev, io_errors, nbd_export
from testbed.qemu.block_filters import PLAIN, BlockFilters
from testbed.qemu.blockdev import Storage
from testbed.qemu.io_errors import IoErrors
from testbed.qemu.monitor import Monitor
from testbed.qemu.nbd_export import Export
from testbed.qemu.nbd_server.settings import Settings
from testbed.topology.disks import Disk
from testbed.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCondition:
    """How a disk is made to behave now."""

    throttle: Throttle
    latency: Latency = NO_DELAY
    faults: tuple[Fault, ...] = ()


@dataclass(slots=True)
class _Disk:
    """A disk or a namespace as it is now. `letting_go`: ends when it hangs no longer, which is at `hangs_until`. One change at a time.

    `image`: the export of the image that it is an overlay of, which is there as long as its own.
    """

    layers: BlockFilters = PLAIN
    export: Export | None = None
    image: Export | None = None
    latency: Latency = NO_DELAY
    faults: tuple[Fault, ...] = ()
    out: bool = False
    hangs_until: float = 0.0
    letting_go: asyncio.Task[None] | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def exports(self) -> tuple[Export, ...]:
        return tuple(one for one in (self.export, self.image) if one is not None)

    async def close(self) -> None:
        """End its exports."""
        exports, self.export, self.image = self.exports, None, None
        for one in exports:
            await one.close()


class DiskControl:
    """The exports' logs are with the guest's evidence. `on_trouble` hears of a disk that is not what it was, by no wish of ours."""

    def __init__(self, monitor: Monitor, wait: Wait, spec: LaunchSpec, slots: Hotplug, on_trouble: OnFailure) -> None:
        self._slots, self._host, self._on_trouble = slots, spec.host, on_trouble
        self.errors = IoErrors()
        self.limits_changed = 0  # how often; counted after the change
        self._model, self._monitor, self._wait, self._deadlines = spec.model, monitor, wait, spec.deadlines
        self._scratch, self._logs = spec.scratch, spec.logs
        self._now = {
            name: _Disk() for own, disk in spec.model.disks.items() for name in (own, *blockdev.namespaces(disk))
        }

    # What there is ----------------------------------------------------------------------------------------------------------------

    def disk(self, name: str) -> Disk:
        """The disk of that name, or of which it is a namespace.

        :raise UsageError: there is none, or it is unplugged.
        """
        if name in self._model.throttle_groups and name not in self._now:
            raise UsageError(f"expected a disk, got {name!r}, which is a throttle group; name one of its disks")
        if name not in self._now:
            raise UsageError(
                f"expected one of the guest's disks ({', '.join(self.names()) or 'it has none'}), got {name!r}"
            )
        if self._now[name].out:
            raise UsageError(f"disk {name}: it is unplugged")
        return self._model.disks[self._owner(name)]

    def is_out(self, name: str) -> bool:
        """Whether a disk is unplugged.

        :raise UsageError: there is none of that name.
        """
        return (name in self._now and self._now[name].out) or not self.disk(name)

    def _owner(self, name: str) -> str:
        return next(own for own, disk in self._model.disks.items() if name == own or name in blockdev.namespaces(disk))

    def names(self) -> Iterable[str]:
        """All disks and namespaces that are there."""
        return (name for name, now in self._now.items() if not now.out)

    async def condition(self, name: str) -> DiskCondition:
        """How a disk behaves now; its limits as QEMU says them."""
        limits, now = await self._limits(blockdev.throttle_group(name, self.disk(name))), self._now[name]
        return DiskCondition(throttle=from_qemu_limits(limits), latency=now.latency, faults=now.faults)

    async def errors_of(self, name: str) -> list[str]:
        """The errors of a disk that there were, each kind in words."""
        counted = await self._wait(self._monitor.execute("query-blockstats", kept=False), self._deadlines.monitor_s)
        return self.errors.said(name, io_errors.failed_requests(counted, name))

    @contextlib.asynccontextmanager
    async def _changing(self, name: str) -> AsyncIterator[tuple[Disk, _Disk]]:
        """A disk that nobody else changes meanwhile."""
        self.disk(name)
        async with self._now[name].changing:
            yield self.disk(name), self._now[name]

    # Limits -----------------------------------------------------------------------------------------------------------------------

    async def throttle(self, name: str, wanted: Throttle) -> None:
        """Set the limits of a disk, and of all that share its group.

        :raise UsageError: there is no such disk, or QEMU would refuse the limits. :raise HostError: QEMU has others than it was told.
        """
        group = blockdev.throttle_group(name, self.disk(name))
        _refuse(name, wanted.mistakes())
        arguments = {"path": f"/objects/{group}", "property": "limits", "value": wanted.limits()}
        async with self._changing(name):
            await self._wait(self._monitor.execute("qom-set", arguments), self._deadlines.monitor_s)
            self.limits_changed += 1
            there = await self._limits(group)
        differing = {key: there.get(key) for key, value in wanted.limits().items() if there.get(key) != value}
        if differing:
            raise HostError(f"disk {name}: QEMU's limits are not those that it was told: {differing}")

    async def _limits(self, group: str) -> dict[str, int]:
        found: dict[str, int] = await self._wait(self._monitor.limits(group), self._deadlines.monitor_s)
        return found

    # Delays, faults, a hang -------------------------------------------------------------------------------------------------------

    async def furnish(self) -> None:
        """Give each disk the cache and the delays that its topology says."""
        for name, disk in self._model.disks.items():
            if disk.cache is not None:
                await self._export(name, disk)
            await self.delay(name, blockdev.latency_of(disk))

    async def delay(self, name: str, wanted: Latency) -> None:
        """Let each request of a disk take so much longer, from now on.

        :raise UsageError: there is no such disk, or it hangs.
        """
        if wanted.none:  # also where there is a jitter of nothing
            wanted = NO_DELAY
        async with self._changing(name) as (disk, now):
            if wanted.none and now.export is None:
                return
            _refuse(name, _hanging(now))
            await self._export(name, disk)
            for export in now.exports:
                await export.set_latency(wanted)
            now.latency = wanted
            await self._put_back(name, disk)

    async def inject(self, name: str, wanted: tuple[Fault, ...]) -> None:
        """Let requests of a disk go wrong as said, and no others; without any, all is well again.

        :raise UsageError: there is no such disk, or no such fault, or it hangs.
        """
        async with self._changing(name) as (disk, now):
            _refuse(name, (mistake for fault in wanted for mistake in fault.mistakes()))
            _refuse(name, _hanging(now))
            others = tuple(fault for fault in wanted if not fault.in_qemu)
            placed = tuple(fault for fault in others if fault.operation != FLUSH)
            kept = self._kept(name)
            if placed and kept is not None and kept.format == "qcow2":
                got = words.format_faults(placed)[0]
                raise UsageError(
                    f"disk {name}: expected errors of the whole disk, always or up to {MOST_RULES} times, got {got}: it is kept in qcow2,"
                    " whose file has its bytes elsewhere; use a raw one"
                )
            size_bytes = kept.file.stat().st_size if kept is not None else disk.size
            for fault in others:
                if fault.first >= size_bytes:
                    got = words.format_faults((fault,))[0]
                    raise UsageError(
                        f"disk {name}: expected a range that begins within its {format_size(size_bytes)}, got {got}"
                    )
            if now.export is not None:
                await now.export.set_faults(())  # QEMU flushes the disk before it changes
            await self._change(name, disk, errors=tuple(fault for fault in wanted if fault.in_qemu))
            if others:
                await (await self._export(name, disk)).set_faults(others)
            now.faults = wanted
            await self._put_back(name, disk)

    async def hang(self, name: str, seconds: float) -> None:
        """Let no request of a disk end for so long; 0 lets them go.

        :raise UsageError: there is no such disk, or the time is none.
        """
        async with self._changing(name) as (disk, now):
            if not 0 <= seconds <= 3600:
                raise UsageError(f"disk {name}: expected 0 to 3600 seconds, got {seconds}")
            if not seconds and now.export is None:
                return
            if now.letting_go is not None:
                now.letting_go.cancel()
            await self._export(name, disk)
            for export in now.exports:
                await export.hold(seconds)
            now.hangs_until = time.monotonic() + seconds
            now.letting_go = asyncio.create_task(self._let_go(name, seconds))

    async def _let_go(self, name: str, seconds: float) -> None:
        """After a hang the disk is as fast again as it was before."""
        await asyncio.sleep(seconds)
        with contextlib.suppress(TestbedError):  # the disk, or the guest, is gone
            async with self._changing(name) as (disk, _):
                await self._put_back(name, disk)

    # Plugs and sizes --------------------------------------------------------------------------------------------------------------

    def _hot(self, name: str) -> Disk:
        """A disk that can be taken out and put in."""
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
        """Take a disk out, with whatever stands on it in the guest; what it holds is kept for `plug`. `surprise`: it is dead before the
        guest hears of it: each request fails from now on, also what the guest wants to write out before it lets the disk go.

        :raise UsageError: there is no such disk that can be. :raise GuestError: the guest does not let it go.
        """
        self._hot(name)
        await self.hang(name, 0)
        await self.delay(name, NO_DELAY)
        await self.inject(name, DEAD if surprise else ())
        async with self._changing(name) as (disk, now):
            await self._slots.take_out(name, disk)
            if now.export is not None:
                await now.export.lose_cache(0.0, 0)  # it has no power any longer
                await now.export.set_faults(())
            await self._change(name, disk, errors=(), export=False, image=False)
            await now.close()
            await self._slots.remove(name, disk, keep=True)
            now.faults, now.out = (), True

    async def plug(self, name: str) -> None:
        """Put a disk in again, as its topology says it, with what it held.

        :raise UsageError: it is there.
        """
        disk, now = self._hot(name), self._now[name]
        async with now.changing:
            if not now.out:
                raise UsageError(f"disk {name}: it is plugged in already")
            await self._slots.plug(name, disk, tuple(self._model.disks).index(name), again=True)
            now.out = False
            self.limits_changed += 1  # they are those of its topology again
            if disk.cache is not None:
                await self._export(name, disk)
        await self.delay(name, blockdev.latency_of(disk))

    async def resize(self, name: str, size_bytes: int) -> None:
        """Give a disk another size. What is beyond a smaller one is lost.

        :raise UsageError: there is no such disk, or that size it cannot have now. :raise HostError: QEMU refuses it.
        """
        async with self._changing(name) as (disk, now):
            step = max(4096, disk.logical_block_size)
            if size_bytes <= 0 or size_bytes % step:
                raise UsageError(f"disk {name}: expected a multiple of {step} bytes, got {size_bytes}")
            if keeps := DISK_KINDS[disk.type].keeps_size:
                raise UsageError(f"disk {name}: {keeps}")
            if now.export is not None:
                raise UsageError(
                    f"disk {name}: it cannot change its size while it has a cache, delays, a hang, or faults of the export; take them away"
                )
            arguments = {"node-name": blockdev.top_node(name), "size": size_bytes}
            await self._wait(self._monitor.execute("block_resize", arguments), self._deadlines.monitor_s)

    async def cut_power(self, share: float, seed: int) -> dict[str, int]:
        """End all requests of the disks that have a volatile cache, and lose what is only there, but for a `share` of the blocks by chance.

        Returns how many blocks each has lost. The guest is of no use afterwards.
        """
        there = {name: now.export for name, now in self._now.items() if now.export is not None}
        return {name: await export.lose_cache(share, seed, end=True) for name, export in there.items()}

    # The layers -------------------------------------------------------------------------------------------------------------------

    async def _export(self, name: str, disk: Disk) -> Export:
        """The export in the place of a disk's file; put there if it is not."""
        now = self._now[name]
        if now.export is None:
            kept = self._kept(name)
            try:
                now.export = await self._start(
                    name, nbd_export.export_settings(name, disk, kept), kept.file if kept is not None else None
                )
                if kept is not None and kept.image is not None:
                    now.image = await self._start(f"image-{name}", nbd_export.IMAGE, kept.image[0].resolve())
                await self._change(name, disk, export=True, image=now.image is not None)
            except BaseException:
                await now.close()
                raise
        return now.export

    async def _start(self, name: str, settings: Settings, file: Path | None) -> Export:
        log = self._logs / f"export-{name}.jsonl"
        return await Export.start(name, settings, file=file, log=log, host=self._host, on_end=self._on_trouble)

    def _kept(self, name: str) -> Storage | None:
        """What a disk or a namespace is kept in."""
        own = self._owner(name)
        disk = self._model.disks[own]
        stores = blockdev.plan_storage(own, disk, self._scratch)
        return dict(zip((own, *blockdev.namespaces(disk)), stores, strict=False)).get(name)

    async def _put_back(self, name: str, disk: Disk) -> None:
        """The file again in the place of an export that has nothing to do."""
        now = self._now[name]
        idle = (
            disk.cache is None
            and now.latency.none
            and all(fault.in_qemu for fault in now.faults)
            and not any(_hanging(now))
        )
        if idle and now.export is not None:
            for export in now.exports:
                await export.complete_delayed()
            await self._change(name, disk, export=False, image=False)
            await now.close()

    async def _change(self, name: str, disk: Disk, **wanted: Any) -> None:
        old = self._now[name].layers
        new = replace(old, **wanted)
        if new == old:
            return
        new = replace(new, number=old.number + 1)
        commands = block_filters.filter_changes(name, disk, self._kept(name), old, new)
        own = {f"late-{name}": self._now[name].export, f"late-image-{name}": self._now[name].image}
        for node in block_filters.export_connections(name, old, new):
            export = own[node]
            assert export is not None
            with export.client as connection:
                await self._wait(self._monitor.send_file(node, connection.fileno()), self._deadlines.monitor_s)
        await self._wait(self._monitor.run(commands), self._deadlines.monitor_s)
        self._now[name].layers = new

    async def close(self) -> None:
        """End the exports."""
        for now in self._now.values():
            if now.letting_go is not None:
                now.letting_go.cancel()
                await asyncio.gather(now.letting_go, return_exceptions=True)
            await now.close()


def _hanging(now: _Disk) -> Iterable[str]:
    """QEMU waits for a disk's requests before it changes its layers, and the whole guest with it."""
    left = now.hangs_until - time.monotonic()
    if left > 0:
        yield f"it hangs for another {left:.1f} s; let it go first: hang off"


def _refuse(name: str, mistakes: Iterable[str]) -> None:
    said = list(mistakes)
    if said:
        raise UsageError("\n".join(f"disk {name}: {mistake}" for mistake in said))
