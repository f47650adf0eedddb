"""QEMU's saved states: written by a machine that has stopped, loaded by one that has not begun."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from testbed import room
from testbed.errors import HostError
from testbed.monitor import Monitor

# Memory that is a shared file is not written into the state; both ends must have agreed on that.
_CAPABILITIES = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


async def write(monitor: Monitor, path: Path) -> None:
    """Save a machine that has stopped.

    :raise HostError: QEMU cannot: it names the device that it cannot save. Of a full disk it says nothing.
    """
    await monitor.execute("migrate-set-capabilities", _CAPABILITIES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        await monitor.send_file("state", descriptor)
    finally:
        os.close(descriptor)
    await monitor.execute("migrate", {"uri": "fd:state"})
    while (answer := await monitor.execute("query-migrate")).get("status") not in ("completed", "failed", "cancelled"):
        await asyncio.sleep(0.01)
    if answer["status"] != "completed":
        reason = answer.get("error-desc") or room.full((path.parent,)) or "no reason"
        raise HostError(f"QEMU: expected to save the machine's state, got {answer['status']}: {reason}")


async def load(monitor: Monitor, path: Path) -> None:
    """Load a state into a machine that waits for one; it does not run yet afterwards.

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
