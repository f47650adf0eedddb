"""Makes templates: boots a machine once, warms it up, and saves its state without data disks.

The warm-up runs what every clone runs first (a handshake, a command, a disk of each kind coming and going), so that clones find pages
cached and lazy set-up done. Data disks are gone when the state is saved: NVMe refuses to be saved, and clones bring their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from testbed import clock, states
from testbed.errors import GuestError
from testbed.guest import Guest
from testbed.hardware.disks import DISK_KINDS
from testbed.plan import Memory
from testbed.progress import Task
from testbed.store import cache, templates
from testbed.topology.disks import disk_of
from testbed.units import MIB

# After the warm-up, until what it started in the background is done (workqueues, RCU, udev-less device removal).
_SETTLE_S = 1.0
_WARM_UP_BYTES = 64 * MIB

# Boots a guest whose RAM is in the given memory, without disks of a topology.
Boot = Callable[[Memory], AbstractAsyncContextManager[Guest]]


# How far a guest's clock may be from the host's while it is warmed up, beside what the measure itself leaves open.
_CLOCK_SHARE = 0.05
_TRIES = 4


async def save(folder: Path, boot: Boot, host_key: bytes, task: Task) -> dict[str, Any]:
    """Fill `folder` with a template; returns its record.

    A kernel that is interrupted while it measures its TSC may find a frequency that is none: seen was 317 MHz of 2445, in whose clones a
    second lasted 0.13 s. Such a guest is booted again.

    :raise GuestError: the guest does not boot, or its clock is wrong each time. :raise HostError: QEMU cannot save it.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            (folder / "memory").unlink()
        made = await _once(folder, boot, host_key, task)
        if made is not None:
            return made
    raise GuestError(f"guest template: expected a clock that goes as ours, got another at {_TRIES} boots; see its console: tsc")


async def _once(folder: Path, boot: Boot, host_key: bytes, task: Task) -> dict[str, Any] | None:
    """None where the guest's clock is wrong."""
    memory = folder / "memory"
    task.update(fraction=0.0, detail="booting")
    async with boot(Memory(file=memory, shared=True)) as guest:
        task.update(fraction=0.5, detail="warming up")
        before, began = await clock.read(guest), time.monotonic()
        await _warm_up(guest)
        after, took_s = await clock.read(guest), time.monotonic() - began
        if abs(after.offset_s - before.offset_s) > before.error_s + after.error_s + _CLOCK_SHARE * took_s:
            return None
        task.update(fraction=0.7, detail="saving")
        await guest.freeze()
        await guest.monitor.execute("stop")
        await guest.wait(states.write(guest.monitor, folder / "state"), guest.order.deadlines.restore_s)
        boot_s = guest.boot_s
        # The guest's memory stays as it is from here on: nothing runs any more.
        await asyncio.to_thread(_sync, memory)
    return {
        "memory_ctime_ns": templates.touched_at_ns(memory),
        "boot_s": round(boot_s, 3),
        "host_key": host_key.hex(),
        "state_bytes": (folder / "state").stat().st_size,
        "state_sha256": cache.file_sha256(folder / "state"),
    }


async def _warm_up(guest: Guest) -> None:
    await guest.run("true")
    disks = {f"warm{port}": disk_of(type=kind, size=_WARM_UP_BYTES) for port, kind in enumerate(DISK_KINDS)}
    for port, (name, disk) in enumerate(disks.items()):
        await guest.slots.plug(name, disk, port)
    await asyncio.sleep(_SETTLE_S)
    for name, disk in disks.items():
        await guest.slots.unplug(name, disk)
    await guest.run("true")
    await asyncio.sleep(_SETTLE_S)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
