"""Unplugs and plugs disks of a guest while it reads and writes them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from rich.console import Console

from testbed.errors import GuestLost
from testbed.guest.factory import open_factory
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings
from testbed.host import tempdirs
from testbed.progress import Task
from testbed.report import live
from testbed.topology import GuestModel
from testbed.topology.disks import make_disk
from testbed.units import MIB

_KINDS = ("virtio-blk", "nvme")
# Two readers and two writers of the disk with the serial $1, whenever it is there.
_LOAD = """\
while :; do
    for file in /sys/block/*/serial /sys/block/*/device/serial; do
        serial=$(cat "$file" 2>/dev/null)  # padded with spaces, or without an end of line
        [ "${serial%% *}" = "$1" ] || continue
        name=${file#/sys/block/}; name=/dev/${name%%/*}
        for skip in 0 8192; do
            dd if="$name" of=/dev/null bs=4k skip=$skip iflag=direct 2>/dev/null &
            dd if=/dev/zero of="$name" bs=4k seek=$skip oflag=direct conv=notrunc,nocreat 2>/dev/null &
        done
        wait
    done
    sleep 0.05
done
"""
_BUSY = 50  # reads, and writes, before a disk is unplugged
_LIMIT_S = 60.0

Row = dict[str, Any]


async def measure(*, cycles: int, kernel: str) -> list[Row]:
    """Return a row for each kind of disk: how many cycles the guest survived, or its console's message."""
    rows = []
    with tempdirs.temporary() as folder, live.progress(Console(stderr=True)) as progress:
        async with open_factory(progress, kernels=(kernel,)) as factory:
            for kind in _KINDS:
                model = GuestModel(disks={"data": make_disk(type=kind, size=64 * MIB)})
                async with factory.guest("bench", model, await factory.kernel(kernel), folder / kind) as guest:
                    with progress.task(kind) as task:
                        rows.append({"disk": kind, **await _cycles(guest, cycles, task)})
    return rows


async def _cycles(guest: Guest, cycles: int, task: Task) -> Row:
    loading = asyncio.create_task(guest.script(_LOAD, "tb-data", timeout_s=86400))
    done, reads, writes, why, began = 0, 0, 0, "", time.monotonic()
    try:
        for number in range(cycles):
            counted = await guest.wait(_busy(guest), _LIMIT_S)
            reads, writes = reads + counted["rd_operations"], writes + counted["wr_operations"]
            await guest.hardware.unplug("data", surprise=number % 2 == 1)
            await guest.hardware.plug("data")
            done += 1
            task.update(fraction=done / cycles)
    except GuestLost as lost:
        why = str(lost).splitlines()[0]
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    found = sorted({finding.kind.value for finding in guest.console.findings})
    each = round((time.monotonic() - began) / max(done, 1), 2)
    said = ", ".join(found)
    return {
        "cycles": done,
        "s each": each,
        "reads meanwhile": reads,
        "writes": writes,
        "console": said,
        "guest": why or "lives",
    }


async def _busy(guest: Guest) -> dict[str, int]:
    """Wait until the guest uses the disk, and return what the disk has counted since it was plugged in."""
    while True:
        counted = (await readings.read_disks(guest)).get("data")
        if counted and counted["rd_operations"] >= _BUSY and counted["wr_operations"] >= _BUSY:
            return counted
        await asyncio.sleep(0.05)
