"""Does to a running guest's disks what somebody says in words, and says in the same words how they behave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from testbed.hardware import words
from testbed.hardware.words import Action
from testbed.live_disks import LiveDisks


def _unplug(disks: LiveDisks, name: str, surprise: bool) -> Awaitable[None]:
    return disks.unplug(name, surprise=surprise)


def _plug(disks: LiveDisks, name: str, nothing: None) -> Awaitable[None]:
    del nothing
    return disks.plug(name)


_DOES: Mapping[str, Callable[[LiveDisks, str, Any], Awaitable[None]]] = {
    "throttle": LiveDisks.throttle,
    "delay": LiveDisks.delay,
    "inject": LiveDisks.inject,
    "hang": LiveDisks.hang,
    "resize": LiveDisks.resize,
    "unplug": _unplug,
    "plug": _plug,
}
Said = dict[str, list[str]]


async def do(disks: LiveDisks, action: Action) -> Said:
    """Do it, and return how the disk behaves then.

    :raise UsageError: it is refused; then nothing has changed. :raise HostError: QEMU refuses it. :raise GuestError: the guest does.
    """
    await _DOES[action.verb](disks, action.disk, action.value)
    return await said(disks, action.disk)


async def told(disks: LiveDisks, some: Sequence[str]) -> Said:
    """`do` what words say; raises as that, and UsageError where they are not understood."""
    return await do(disks, words.action(some))


async def said(disks: LiveDisks, name: str) -> Said:
    """How a disk behaves now, and the errors of it that QEMU has told of.

    :raise UsageError: there is no such disk.
    """
    if disks.is_out(name):
        return {"throttle": ["unplugged"], "delay": [], "inject": [], "errors": disks.errors.said(name)}
    now = await disks.condition(name)
    return {
        "throttle": words.said_throttle(now.throttle),
        "delay": words.said_latency(now.latency),
        "inject": words.said_faults(now.faults),
        "errors": disks.errors.said(name),
    }
