"""Writes a guest's memory into a file for crash and drgn, by QEMU's dump-guest-memory, also of a dead guest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import Literal

from testbed.errors import GuestError, HostError, TestbedError
from testbed.guest.guest import Guest
from testbed.host import quota
from testbed.units import format_size

Format = Literal["elf", "kdump-zlib"]
FORMATS: tuple[Format, ...] = ("elf", "kdump-zlib")
_LIMIT_S = 600.0


async def prepare_dump(guest: Guest) -> None:
    """Load the driver by which the guest's kernel gives QEMU its VMCOREINFO, which readers of a dump need.

    Does nothing if the guest does not answer.
    """
    if not (await guest.monitor.execute("query-status"))["running"]:
        return
    with contextlib.suppress(GuestError):
        await guest.run("modprobe", "qemu_fw_cfg", check=False, timeout_s=10)


async def write_dump(guest: Guest, path: Path, kind: Format = "elf") -> int:
    """Write the guest's memory into a new file and return its size in bytes. The guest is paused meanwhile.

    `kind`: elf, for drgn, gdb and crash; or kdump-zlib, which is smaller and, as QEMU writes it (flattened), for crash
    only.

    :raise HostError: the disk is too full, the file exists, or QEMU fails; no new file is left then.
    """
    need = guest.spec.machine.memory_bytes + quota.MARGIN_BYTES
    try:
        free = shutil.disk_usage(path.parent).free
        if free < need:
            raise HostError(f"{path}: a dump may need {format_size(need)}, {format_size(free)} are free there")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise HostError(f"{path}: cannot be made: {error.strerror}") from error
    try:
        try:
            await guest.monitor.send_file("dump", descriptor)
        finally:
            os.close(descriptor)
        arguments = {"paging": False, "protocol": "fd:dump", "format": kind, "detach": True}
        await guest.monitor.execute("dump-guest-memory", arguments)
        await _wait_for_dump(guest, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path.stat().st_size


async def _wait_for_dump(guest: Guest, path: Path) -> None:
    async with asyncio.timeout(_LIMIT_S):
        while (answer := await guest.monitor.execute("query-dump", log=False))["status"] in ("active", "none"):
            await asyncio.sleep(0.05)
    if answer["status"] != "completed":
        raise HostError(f"{path}: QEMU: expected a dump, got {answer['status']}")


async def write_dump_or_reason(guest: Guest, path: Path) -> str:
    """Write the memory into a file and return its path; or, if that fails, a text that says why."""
    try:
        await write_dump(guest, path)
    except TestbedError as error:
        return f"no dump: {error}"
    return str(path)
