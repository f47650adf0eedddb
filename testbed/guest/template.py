"""Makes templates: boots a machine once, warms it up, and saves its state without data disks.

The warm-up does what every clone does first (an SSH handshake, a command, plugging and unplugging a disk of each kind),
so that clones find pages cached and lazy initialization done. Data disks are unplugged before the state is saved: NVMe
refuses to be saved, and clones bring their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.errors import GuestError, TestbedError
from testbed.guest import clock, log_files
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.guest import Guest
from testbed.guest.launch import launch
from testbed.guest.launch_spec import LaunchSpec
from testbed.hardware.disk_kinds import DISK_KINDS
from testbed.hashing import file_sha256
from testbed.progress import Progress, Task
from testbed.qemu import migration
from testbed.qemu.command_line import Memory
from testbed.qemu.machine_id import MachineId
from testbed.store import template_files
from testbed.topology.disks import make_disk
from testbed.topology.model import GuestModel
from testbed.units import MIB

# After the warm-up, until what it started in the background is done (workqueues, RCU, udev-less device removal).
_SETTLE_S = 1.0
_WARM_UP_BYTES = 64 * MIB

# Boots a guest whose RAM is in the given memory, without disks of a topology.
Boot = Callable[[Memory], AbstractAsyncContextManager[Guest]]
# How often a guest is booted, until its clock is right.
TRIES = 4


def diskless_model(machine: MachineId) -> GuestModel:
    """Return a guest with the CPUs and the memory of a machine, and without disks."""
    return GuestModel.model_validate({"cpus": machine.cpus, "memory": machine.memory_bytes})


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateMaker:
    """Makes the template of one machine.

    `boot_spec`: returns the launch spec of a cold boot that writes its logs into the given folder. `booting`: limits
    how many guests boot at once. `runs`: where a boot that failed leaves its logs.
    """

    boot_spec: Callable[[Path], LaunchSpec]
    key: SshKey
    booting: asyncio.Semaphore
    progress: Progress
    runs: Path

    async def make(self, folder: Path, title: str) -> dict[str, Any]:
        """Fill a folder with the template; returns its record. Raises as `save_template`."""
        host_key = SshKey.new().private
        logs = folder / "boot"

        def boot(memory: Memory) -> AbstractAsyncContextManager[Guest]:
            return launch(replace(self.boot_spec(logs), memory=memory, host_key=host_key), self.key)

        try:
            async with self.booting:
                with self.progress.task(title) as task:
                    return await save_template(folder, boot, host_key, task)
        except TestbedError:
            log_files.keep_template_logs(logs, self.runs, self.progress)
            raise


async def save_template(folder: Path, boot: Boot, host_key: bytes, task: Task) -> dict[str, Any]:
    """Boot a guest and save its memory and state in `folder`; returns the template's record.

    :raise GuestError: the guest does not boot, or its clock is wrong each time. :raise HostError: QEMU cannot save it.
    """
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError):
            (folder / "memory").unlink()
        record = await _boot_and_save(folder, boot, host_key, task)
        if record is not None:
            return record
    raise wrong_clock_error("template")


def wrong_clock_error(name: str) -> GuestError:
    """Return the error of a guest whose clock was wrong at each boot."""
    return GuestError(
        f"guest {name}: expected a clock that goes as ours, got another at {TRIES} boots; see its console: tsc"
    )


async def _boot_and_save(folder: Path, boot: Boot, host_key: bytes, task: Task) -> dict[str, Any] | None:
    """Return the template's record; None if the guest's clock is wrong."""
    memory = folder / "memory"
    task.update(fraction=0.0, detail="booting")
    async with boot(Memory(file=memory, shared=True)) as guest:
        task.update(fraction=0.5, detail="warming up")
        if not await clock.runs_at_host_rate(guest, lambda: _warm_up(guest)):
            return None
        task.update(fraction=0.7, detail="saving")
        await guest.freeze()
        await guest.qmp.execute("stop")
        await guest.wait(migration.save_state(guest.monitor, folder / "state"), guest.deadlines.restore_s)
        boot_s = guest.boot_s
        # The guest's memory does not change any more: its CPUs are stopped.
        await asyncio.to_thread(_sync, memory)
    return {
        "memory_ctime_ns": template_files.ctime_ns(memory),
        "boot_s": round(boot_s, 3),
        "host_key": host_key.hex(),
        "state_bytes": (folder / "state").stat().st_size,
        "state_sha256": file_sha256(folder / "state"),
    }


async def _warm_up(guest: Guest) -> None:
    """Run a command, and plug and unplug a disk of each kind."""
    await guest.run("true")
    disks = {f"warm{port}": make_disk(type=kind, size=_WARM_UP_BYTES) for port, kind in enumerate(DISK_KINDS)}
    for port, (name, disk) in enumerate(disks.items()):
        await guest.hotplug.plug(name, disk, port)
    await asyncio.sleep(_SETTLE_S)
    for name, disk in disks.items():
        await guest.hotplug.unplug(name, disk)
    await guest.run("true")
    await asyncio.sleep(_SETTLE_S)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
