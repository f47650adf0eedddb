"""Saves the state of a stopped machine to a file, and loads it into another machine (QEMU's migration)."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from testbed.errors import HostError
from testbed.host import quota
from testbed.qemu.monitor import Monitor
from testbed.units import format_size

# Memory in a shared file is not written into the state; both ends must have this capability on.
_CAPABILITIES = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


async def save_state(monitor: Monitor, path: Path, *, leave_bytes: int = 0) -> None:
    """Save the state of a stopped machine. `leave_bytes`: free space to leave on the disk; the state's size is known
    only as it is written.

    :raise HostError: QEMU cannot save it (it names the device at fault, but does not report a full disk), or too little
        space is left.
    """
    await monitor.execute("migrate-set-capabilities", _CAPABILITIES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        await monitor.send_file("state", descriptor)
    finally:
        os.close(descriptor)
    await monitor.execute("migrate", {"uri": "fd:state"})
    short = False
    while (answer := await monitor.execute("query-migrate")).get("status") not in ("completed", "failed", "cancelled"):
        if not short and (short := shutil.disk_usage(path.parent).free < leave_bytes):
            await monitor.execute("migrate_cancel")
        await asyncio.sleep(0.01)
    if short:
        raise HostError(
            f"{path.parents[1]}: expected {format_size(leave_bytes)} to be left on this machine's disk beside the "
            "guest's memory; make room there, or name another place with TESTBED_STATE"
        )
    if answer["status"] != "completed":
        reason = answer.get("error-desc") or quota.full_disk_message((path.parent,)) or "no reason"
        raise HostError(f"QEMU: expected to save the machine's state, got {answer['status']}: {reason}")


async def load_state(monitor: Monitor, path: Path) -> None:
    """Load a state into a machine that waits for one; its CPUs do not run yet afterwards.

    :raise HostError: QEMU refuses it.
    """
    await monitor.execute("migrate-set-capabilities", _CAPABILITIES)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        await monitor.send_file("state", descriptor)
    finally:
        os.close(descriptor)
    await monitor.execute("migrate-incoming", {"uri": "fd:state"})
    while (status := (await monitor.execute("query-status"))["status"]) == "inmigrate":
        await asyncio.sleep(0.005)
    if status not in ("paused", "prelaunch"):
        raise HostError(f"QEMU: expected the status paused after loading a state, got {status}")
