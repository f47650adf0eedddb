"""Applies hardware commands to a running guest, and describes its state in the same syntax."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from testbed.guest import cpu_memory
from testbed.guest.disk_control import DiskControl
from testbed.guest.guest import Guest
from testbed.hardware import commands
from testbed.hardware.commands import Action
from testbed.units import format_size


def _unplug(disks: DiskControl, name: str, surprise: bool) -> Awaitable[None]:
    return disks.unplug(name, surprise=surprise)


def _plug(disks: DiskControl, name: str, nothing: None) -> Awaitable[None]:
    del nothing
    return disks.plug(name)


_DISK_VERBS: Mapping[str, Callable[[DiskControl, str, Any], Awaitable[None]]] = {
    "throttle": DiskControl.throttle,
    "delay": DiskControl.delay,
    "inject": DiskControl.inject,
    "hang": DiskControl.hang,
    "resize": DiskControl.resize,
    "unplug": _unplug,
    "plug": _plug,
}
_MACHINE_VERBS: Mapping[str, Callable[[Guest, int | None], Awaitable[None]]] = {
    "memory": cpu_memory.set_memory,
    "cpus": cpu_memory.set_cpus,
}
# By verb: its current settings, as the command that would set them.
Description = dict[str, list[str]]


async def run_action(guest: Guest, action: Action) -> Description:
    """Run one action, and describe the disk, or the machine, afterwards.

    :raise UsageError: the action is not possible; nothing has changed. :raise HostError: QEMU refuses it.
    :raise GuestError: the guest refuses it.
    """
    if action.disk == commands.MACHINE:
        await _MACHINE_VERBS[action.verb](guest, action.value)
        return await describe_machine(guest)
    await _DISK_VERBS[action.verb](guest.hardware, action.disk, action.value)
    if action.verb == "plug":
        await guest.refresh_disks()
    return await describe(guest.hardware, action.disk)


async def apply(guest: Guest, words: Sequence[str]) -> Description:
    """Parse and run a command. Raises as `run_action`, and UsageError if it is no command."""
    return await run_action(guest, commands.parse(words))


async def describe_machine(guest: Guest) -> Description:
    """Describe the memory and the CPUs that a guest has now."""
    return {
        "memory": [format_size(await cpu_memory.memory_state(guest))],
        "cpus": [str(await cpu_memory.cpu_state(guest))],
    }


async def describe(disks: DiskControl, name: str) -> Description:
    """Describe how a disk behaves now, and the errors that it had.

    :raise UsageError: there is no such disk.
    """
    if disks.is_unplugged(name):
        return {"throttle": ["unplugged"], "delay": [], "inject": [], "errors": await disks.errors_of(name)}
    now = await disks.condition(name)
    return {
        "throttle": commands.format_throttle(now.throttle),
        "delay": commands.format_latency(now.latency),
        "inject": commands.format_faults(now.faults),
        "errors": await disks.errors_of(name),
    }
