"""Disks that are taken out of a guest and put in again while it reads and writes them."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from testbed import gauges
from testbed.errors import GuestLost
from testbed.guest import Guest
from testbed.lab import open_lab
from testbed.progress import Task
from testbed.report import live
from testbed.topology import Guest as GuestModel
from testbed.topology.disks import disk_of
from testbed.units import MIB

_KINDS = ("virtio-blk", "nvme")
# Reads and writes whatever disk has the serial $1, as soon and as long as it is there.
_LOAD = """\
while :; do
    for file in /sys/block/*/serial /sys/block/*/device/serial; do
        [ -e "$file" ] && read -r serial <"$file" && [ "$serial" = "$1" ] || continue
        name=${file#/sys/block/}; name=/dev/${name%%/*}
        fio --name=load --filename="$name" --direct=1 --rw=randrw --bs=4k --ioengine=libaio --iodepth=8 --time_based --runtime=60 \\
            --thread --output=/dev/null 2>/dev/null
    done
    sleep 0.1
done
"""

Row = dict[str, Any]


async def measure(*, cycles: int, kernel: str) -> list[Row]:
    """A row for each kind of disk: how many cycles the guest lived through, and what its console said if it did not."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, live.progress(Console(stderr=True)) as progress:
        async with open_lab(progress, kernels=(kernel,)) as lab:
            for kind in _KINDS:
                model = GuestModel(disks={"data": disk_of(type=kind, size=64 * MIB)})
                async with lab.guest("bench", model, await lab.kernel(kernel), Path(folder) / kind) as guest:
                    with progress.task(kind) as task:
                        rows.append({"disk": kind, **await _cycles(guest, cycles, task)})
    return rows


async def _cycles(guest: Guest, cycles: int, task: Task) -> Row:
    loading = asyncio.create_task(guest.script(_LOAD, "tb-data", timeout_s=86400))
    done, requests, why, began = 0, 0, "", time.monotonic()
    try:
        for number in range(cycles):
            await asyncio.sleep(0.5)
            requests += sum(entry["rd_operations"] for entry in (await gauges.disks(guest)).values())
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
    return {"cycles": done, "s each": each, "reads meanwhile": requests, "console": ", ".join(found), "guest": why or "lives"}
