"""Makes templates: boots a machine once, warms it up, and saves its state without data disks.

The warm-up runs what every clone runs first (a handshake, a command, a disk of each kind coming and going), so that clones find pages
cached and lazy set-up done. Data disks are gone when the state is saved: NVMe refuses to be saved, and clones bring their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from testbed.errors import GuestError
from testbed.guest import clock
from testbed.guest.guest import Guest
from testbed.hardware.disk_kinds import DISK_KINDS
from testbed.hashing import file_sha256
from testbed.progress import Task
from testbed.qemu import migration
from testbed.qemu.command_line import Memory
from testbed.store import template_files
from testbed.topology.disks import make_disk
from testbed.units import MIB

# After the warm-up, until what it started in the background is done (workqueues, RCU, udev-less device removal).
_SETTLE_S = 1.0
_WARM_UP_BYTES = 64 * MIB

# Boots a guest whose RAM is in the given memory, without disks of a topology.
Boot = Callable[[Memory], AbstractAsyncContextManager[Guest]]
# A guest whose clock is wrong is booted again.
TRIES = 4


async def save_template(folder: Path, boot: Boot, host_key: bytes, task: Task) -> dict[str, Any]:
    """Fill `folder` with a template; returns its record.

    :raise GuestError: the guest does not boot, or its clock is wrong each time. :raise HostError: QEMU cannot save it.
    """
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError):
            (folder / "memory").unlink()
        made = await _once(folder, boot, host_key, task)
        if made is not None:
            return made
    raise wrong_clock_error("template")


def wrong_clock_error(name: str) -> GuestError:
    return GuestError(
        f"guest {name}: expected a clock that goes as ours, got another at {TRIES} boots; see its console: tsc"
    )


async def _once(folder: Path, boot: Boot, host_key: bytes, task: Task) -> dict[str, Any] | None:
    """None where the guest's clock is wrong."""
    memory = folder / "memory"
    task.update(fraction=0.0, detail="booting")
    async with boot(Memory(file=memory, shared=True)) as guest:
        task.update(fraction=0.5, detail="warming up")
        if not await clock.runs_at_host_rate(guest, lambda: _warm_up(guest)):
            return None
        task.update(fraction=0.7, detail="saving")
        await guest.freeze()
        await guest.wait(guest.monitor.execute("stop"), guest.spec.deadlines.monitor_s)
        await guest.wait(migration.save_state(guest.monitor, folder / "state"), guest.spec.deadlines.restore_s)
        boot_s = guest.boot_s
        # The guest's memory stays as it is from here on: nothing runs any more.
        await asyncio.to_thread(_sync, memory)
    return {
        "memory_ctime_ns": template_files.touched_at_ns(memory),
        "boot_s": round(boot_s, 3),
        "host_key": host_key.hex(),
        "state_bytes": (folder / "state").stat().st_size,
        "state_sha256": file_sha256(folder / "state"),
    }


async def _warm_up(guest: Guest) -> None:
    await guest.run("true")
    disks = {f"warm{port}": make_disk(type=kind, size=_WARM_UP_BYTES) for port, kind in enumerate(DISK_KINDS)}
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
