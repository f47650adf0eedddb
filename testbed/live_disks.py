"""What a running guest's disks do on command: other limits, delays, errors, losses, a hang. Everything is checked before anything changes,
and read back from QEMU afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed import drives, layers
from testbed.errors import HostError, UsageError
from testbed.exports import Export
from testbed.hardware import words
from testbed.hardware.faults import MOST_RULES, Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.throttle import Throttle
from testbed.layers import PLAIN, Layers
from testbed.monitor import Monitor
from testbed.order import Order, Wait
from testbed.slots import Slots
from testbed.topology.disks import Disk, Nvme


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How a disk is made to behave now."""

    throttle: Throttle
    latency: Latency = NO_DELAY
    faults: tuple[Fault, ...] = ()


class LiveDisks:
    """The exports' sockets are beside the guest's others, and their logs with its evidence."""

    def __init__(self, monitor: Monitor, wait: Wait, order: Order, slots: Slots) -> None:
        self._slots = slots
        self._out: set[str] = set()
        self._model, self._monitor, self._wait, self._deadlines = order.model, monitor, wait, order.deadlines
        self._scratch, self._sockets, self._evidence = order.scratch, order.sockets, order.evidence
        self._layers: dict[str, Layers] = {}
        self._exports: dict[str, Export] = {}
        self._latencies: dict[str, Latency] = {}
        self._faults: dict[str, tuple[Fault, ...]] = {}

    def disk(self, name: str) -> Disk:
        """The disk of that name, or of which it is a namespace.

        :raise UsageError: there is none, or it is unplugged.
        """
        for own, disk in self._model.disks.items():
            if name == own or name in drives.namespaces(disk):
                if own in self._out:
                    raise UsageError(f"disk {own}: it is unplugged")
                return disk
        if name in self._model.throttle_groups:
            raise UsageError(f"expected a disk, got {name!r}, which is a throttle group; name one of its disks")
        raise UsageError(f"expected one of the guest's disks ({', '.join(self.names()) or 'it has none'}), got {name!r}")

    async def furnish(self) -> None:
        """Give each disk the delays that its topology says."""
        for name, disk in self._model.disks.items():
            latency = drives.latency_of(disk)
            if not latency.none:
                await self.delay(name, latency)

    def names(self) -> Iterable[str]:
        """All disks and namespaces that are there."""
        for name, disk in self._model.disks.items():
            if name not in self._out:
                yield from (name, *drives.namespaces(disk))

    async def condition(self, name: str) -> Condition:
        """How a disk behaves now; its limits as QEMU says them."""
        limits = await self._limits(drives.throttle_group(name, self.disk(name)))
        known = {key.replace("_", "-"): key for key in Throttle().given(every=True)}
        found = {known[key]: value for key, value in limits.items() if key in known}
        # A length of 1 is QEMU's own where there is no burst.
        lengths = {key: 0 for key, value in found.items() if key.endswith("_length") and not found[key.removesuffix("_length")]}
        return Condition(
            throttle=Throttle(**{**found, **lengths}),
            latency=self._latencies.get(name, NO_DELAY),
            faults=self._faults.get(name, ()),
        )

    async def throttle(self, name: str, wanted: Throttle) -> None:
        """Set the limits of a disk, and of all that share its group.

        :raise UsageError: there is no such disk, or QEMU would refuse the limits. :raise HostError: QEMU has others than it was told.
        """
        group = drives.throttle_group(name, self.disk(name))
        _refuse(name, wanted.mistakes())
        arguments = {"path": f"/objects/{group}", "property": "limits", "value": wanted.limits()}
        await self._wait(self._monitor.execute("qom-set", arguments), self._deadlines.monitor_s)
        there = await self._limits(group)
        differing = {key: there.get(key) for key, value in wanted.limits().items() if there.get(key) != value}
        if differing:
            raise HostError(f"disk {name}: QEMU's limits are not those that it was told: {differing}")

    async def _limits(self, group: str) -> dict[str, int]:
        arguments = {"path": f"/objects/{group}", "property": "limits"}
        found: dict[str, int] = await self._wait(self._monitor.execute("qom-get", arguments), self._deadlines.monitor_s)
        return found

    async def delay(self, name: str, wanted: Latency) -> None:
        """Let each request of a disk take so much longer, from now on.

        :raise UsageError: there is no such disk.
        """
        self.disk(name)
        if wanted.none and name not in self._exports:
            return
        export = await self._export(name)
        await export.delay(wanted)
        self._latencies[name] = wanted
        await self._put_back(name)

    async def inject(self, name: str, wanted: tuple[Fault, ...]) -> None:
        """Let requests of a disk go wrong as said, and no others; without any, all is well again.

        :raise UsageError: there is no such disk, or no such fault.
        """
        disk = self.disk(name)
        _refuse(name, (mistake for fault in wanted for mistake in fault.mistakes()))
        others = tuple(fault for fault in wanted if not fault.in_qemu)
        if others and self._kind(name, disk) == "qcow2":
            got = words.said_faults(others)[0]
            raise UsageError(
                f"disk {name}: expected errors of the whole disk, always or up to {MOST_RULES} times, got {got}: it is kept in qcow2, whose"
                " file has its bytes elsewhere; use a raw one"
            )
        if others or name in self._exports:
            await (await self._export(name)).fail(others)
        await self._change(name, errors=tuple(fault for fault in wanted if fault.in_qemu))
        self._faults[name] = wanted
        await self._put_back(name)

    async def hang(self, name: str, seconds: float) -> None:
        """Let no request of a disk end for so long; 0 lets them go.

        :raise UsageError: there is no such disk, or the time is none.
        """
        self.disk(name)
        if not 0 <= seconds <= 3600:
            raise UsageError(f"disk {name}: expected 0 to 3600 seconds, got {seconds}")
        if seconds or name in self._exports:
            await (await self._export(name)).hold(seconds)

    def _hot(self, name: str) -> Disk:
        """A disk that can be taken out and put in."""
        disk = self._model.disks.get(name)
        if disk is None:
            self.disk(name)
            raise UsageError(f"disk {name}: expected a whole disk, got a namespace, which cannot be hot-plugged by itself")
        if disk.cold:
            raise UsageError(f"disk {name}: it is plugged when the guest boots, and cannot be taken out or put in later")
        return disk

    async def unplug(self, name: str) -> None:
        """Take a disk out, with whatever stands on it in the guest; what it holds is kept for `plug`.

        :raise UsageError: there is no such disk that can be. :raise GuestError: the guest does not let it go.
        """
        disk = self._hot(name)
        self.disk(name)
        await self.inject(name, ())
        await self.hang(name, 0)
        await self.delay(name, NO_DELAY)
        await self._slots.unplug(name, disk, keep=True)
        self._out.add(name)

    async def plug(self, name: str) -> None:
        """Put a disk in again, as its topology says it, with what it held.

        :raise UsageError: it is there.
        """
        disk = self._hot(name)
        if name not in self._out:
            raise UsageError(f"disk {name}: it is plugged in already")
        await self._slots.plug(name, disk, tuple(self._model.disks).index(name), again=True)
        self._out.discard(name)
        await self.delay(name, drives.latency_of(disk))

    async def resize(self, name: str, size_bytes: int) -> None:
        """Give a disk another size.

        :raise UsageError: there is no such disk, or that size it cannot have now. :raise HostError: QEMU refuses it.
        """
        disk = self.disk(name)
        step = max(4096, disk.logical_block_size)
        if size_bytes <= 0 or size_bytes % step:
            raise UsageError(f"disk {name}: expected a multiple of {step} bytes, got {size_bytes}")
        if isinstance(disk, Nvme):
            raise UsageError(
                f"disk {name}: QEMU's nvme keeps its size while it is plugged in (its block permissions do not share `resize`)"
            )
        if name in self._exports:
            raise UsageError(f"disk {name}: it cannot change its size while it has delays, or faults of the export; take them away first")
        arguments = {"node-name": drives.top_node(name), "size": size_bytes}
        await self._wait(self._monitor.execute("block_resize", arguments), self._deadlines.monitor_s)

    async def _export(self, name: str) -> Export:
        """The export in the place of a disk's file; put there if it is not."""
        if name not in self._exports:
            disk = self.disk(name)
            store = self._stored(name, disk)
            what: dict[str, Any] = {"file": str(store)} if store is not None else {"size": disk.size}
            what["read_only"] = disk.read_only
            export = await Export.start(name, what, self._sockets / f"late-{name}", self._evidence / f"export-{name}.jsonl")
            try:
                await self._change(name, export=export.socket)
            except BaseException:
                await export.close()
                raise
            self._exports[name] = export
        return self._exports[name]

    def _kind(self, name: str, disk: Disk) -> str:
        """The format of what a disk or a namespace is kept in, as QEMU calls it."""
        return "raw" if name not in self._model.disks else "qcow2" if disk.image is not None else disk.format

    def _stored(self, name: str, disk: Disk) -> Path | None:
        """The file that a disk or a namespace is kept in."""
        own = next(key for key, one in self._model.disks.items() if one is disk)
        stores = drives.storage(own, disk, self._scratch)
        return dict(zip((own, *drives.namespaces(disk)), (store.file for store in stores), strict=False)).get(name)

    async def _put_back(self, name: str) -> None:
        """The file again in the place of an export that has nothing to do."""
        idle = self._latencies.get(name, NO_DELAY).none and all(fault.in_qemu for fault in self._faults.get(name, ()))
        if idle and name in self._exports:
            await self._change(name, export=None)
            await self._exports.pop(name).close()

    async def _change(self, name: str, **wanted: Any) -> None:
        disk, old = self.disk(name), self._layers.get(name, PLAIN)
        new = replace(old, **wanted)
        if new == old:
            return
        new = replace(new, number=old.number + 1)
        commands = layers.changed(name, disk, self._kind(name, disk), old, new)
        await self._wait(self._monitor.run(commands), self._deadlines.monitor_s)
        self._layers[name] = new

    async def close(self) -> None:
        """End the exports."""
        for export in self._exports.values():
            with contextlib.suppress(HostError):
                await export.close()


async def told(disks: LiveDisks, disk: str, what: str, said: Sequence[str], scale: float = 1.0) -> dict[str, list[str]]:
    """Do `what` somebody says of a disk, and return how it behaves then, in the same words. Without `what` nothing changes.

    :raise UsageError: it is not understood, or refused; then nothing has changed.
    """
    match what:
        case "unplug":
            await disks.unplug(disk)
            return {"throttle": ["unplugged"], "delay": [], "inject": []}
        case "plug":
            await disks.plug(disk)
        case "resize":
            await disks.resize(disk, words.size(said))
        case "throttle":
            await disks.throttle(disk, words.throttle(said, scale))
        case "delay":
            await disks.delay(disk, words.latency(said))
        case "inject":
            await disks.inject(disk, words.faults(said))
        case "hang":
            await disks.hang(disk, words.seconds(said))
        case "":
            pass
        case other:
            raise UsageError(f"expected throttle, delay, inject, hang, unplug, plug or resize, got {other!r}")
    now = await disks.condition(disk)
    return {
        "throttle": words.said_throttle(now.throttle),
        "delay": words.said_latency(now.latency),
        "inject": words.said_faults(now.faults),
    }


def _refuse(name: str, mistakes: Iterable[str]) -> None:
    said = list(mistakes)
    if said:
        raise UsageError("\n".join(f"disk {name}: {mistake}" for mistake in said))
