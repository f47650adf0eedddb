"""Checks that emulated disks behave as set: limits, delays, and how soon a change is effective. Measured by fio in the
guest, and by QEMU's own counters.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from testbed.guest.factory import open_factory
from testbed.guest.guest import Guest
from testbed.guest.metrics import fio, readings
from testbed.guest.metrics.disk_sampler import sampling_disks
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.throttle import Throttle
from testbed.host import tempdirs
from testbed.report import live
from testbed.topology import GuestModel
from testbed.topology.disks import make_disk
from testbed.units import MIB

KINDS = ("virtio-blk", "nvme", "virtio-scsi")
IOPS = (50, 200, 1000, 3000)
BPS = (5 * MIB, 20 * MIB, 50 * MIB)
DELAYS_US = (1000, 5000, 20_000)
_DEEP = ("--ioengine=libaio", "--iodepth=16")
_SIZE = 256 * MIB
# After the burst that QEMU lets pass when a limit is set: a tenth of a second of it (block/throttle-groups.c,
# util/throttle.c).
_WARM_S = 2.0

Row = dict[str, Any]


async def measure(*, kernel: str, seconds: float, changes: int) -> list[Row]:
    """Return a row for each limit on each kind of disk."""
    model = GuestModel(disks={f"d{number}": make_disk(type=kind, size=_SIZE) for number, kind in enumerate(KINDS)})
    rows: list[Row] = []
    with tempdirs.temporary() as folder, live.progress(Console(stderr=True)) as progress:
        async with open_factory(progress, kernels=(kernel,)) as factory:
            for number, kind in enumerate(KINDS):
                async with factory.guest("bench", model, await factory.kernel(kernel), folder / kind) as guest:
                    with progress.task(kind) as task:
                        name, path = f"d{number}", guest.disks[f"d{number}"].path
                        await guest.run(
                            "dd", "if=/dev/zero", f"of={path}", "bs=1M", "oflag=direct", "status=none", check=False
                        )
                        for part in (_limits, _delays, _change, _sampling):
                            task.update(detail=part.__name__.strip("_"))
                            rows += [{"device": kind, **row} for row in await part(guest, name, seconds)]
                        task.update(detail="changes")
                        rows += [{"device": kind, **row} for row in await _changes(guest, name, changes)]
    return rows


async def _limits(guest: Guest, name: str, seconds: float) -> list[Row]:
    path, rows = guest.disks[name].path, []
    unlimited = await fio.run(guest, path, *_DEEP, "--bs=4k", seconds=seconds / 2)
    rows.append({"limit": None, "measured": round(unlimited.iops, 1), "unit": "random 4K reads/s"})
    for iops in IOPS:
        await guest.hardware.throttle(name, Throttle(iops_total=iops))
        load = await fio.run(guest, path, *_DEEP, "--bs=4k", seconds=seconds, warm_s=_WARM_S)
        rows.append({"limit": iops, "measured": round(load.iops, 1), "unit": "random 4K reads/s"})
    await guest.hardware.throttle(name, Throttle())
    unlimited = await fio.run(guest, path, *_DEEP, "--bs=256k", rw="read", seconds=seconds / 2)
    rows.append({"limit": None, "measured": round(unlimited.bytes_per_s / MIB, 2), "unit": "MiB/s, sequential"})
    for bps in BPS:
        await guest.hardware.throttle(name, Throttle(bps_total=bps))
        load = await fio.run(guest, path, *_DEEP, "--bs=256k", rw="read", seconds=seconds, warm_s=_WARM_S)
        rows.append({"limit": bps // MIB, "measured": round(load.bytes_per_s / MIB, 2), "unit": "MiB/s, sequential"})
    await guest.hardware.throttle(name, Throttle())
    return rows


async def _delays(guest: Guest, name: str, seconds: float) -> list[Row]:
    """Return the medians of one read at a time: what a delay adds, compared with the same disk without it."""
    path, rows = guest.disks[name].path, []
    direct = (await fio.run(guest, path, "--bs=4k", seconds=seconds / 2)).median_us
    rows.append({"limit": None, "measured": round(direct / 1000, 3), "unit": "ms a read, without the export"})
    for delay_us in DELAYS_US:
        await guest.hardware.delay(name, Latency(read_us=delay_us))
        median_us = (await fio.run(guest, path, "--bs=4k", seconds=seconds / 2)).median_us
        rows.append({"limit": delay_us / 1000, "measured": round((median_us - direct) / 1000, 3), "unit": "ms added"})
    await guest.hardware.delay(name, NO_DELAY)
    return rows


async def _change(guest: Guest, name: str, seconds: float) -> list[Row]:
    """Check a new limit: QEMU's count of requests over a second that begins 0.1 s after the change."""
    path, (old, new) = guest.disks[name].path, (1000, 200)
    await guest.hardware.throttle(name, Throttle(iops_total=old))
    loading = asyncio.create_task(fio.run(guest, path, *_DEEP, "--bs=4k", seconds=max(6, seconds)))
    await asyncio.sleep(3)
    await guest.hardware.throttle(name, Throttle(iops_total=new))
    changed = time.monotonic()
    await asyncio.sleep(0.1)
    begin, before = time.monotonic(), await _requests(guest, name)
    await asyncio.sleep(1)
    end, after = time.monotonic(), await _requests(guest, name)
    await loading
    await guest.hardware.throttle(name, Throttle())
    since = (begin - changed) * 1000
    return [
        {
            "limit": new,
            "measured": round((after - before) / (end - begin), 1),
            "unit": f"reads/s from {since:.0f} ms after {old}",
        }
    ]


async def _requests(guest: Guest, name: str) -> int:
    return (await readings.read_disks(guest))[name]["rd_operations"]


async def _sampling(guest: Guest, name: str, seconds: float) -> list[Row]:
    """Return the cost of ten samples a second in this process and in QEMU, with an idle guest: the median of three
    turns.
    """
    del name
    turns = [[await _costs(guest, every_s, seconds) for every_s in (None, 0.1)] for _ in range(3)]
    disks = len(guest.model.disks)
    return [
        {
            "limit": None,
            "measured": round(statistics.median(with_it[number] - without[number] for without, with_it in turns), 2),
            "unit": f"% of a core of {who} for 10 samples/s, disks: {disks}",
        }
        for number, who in enumerate(("the testbed", "QEMU"))
    ]


async def _costs(guest: Guest, every_s: float | None, seconds: float) -> list[float]:
    """Return the percentage of a core that this process and QEMU use while samples are taken."""
    async with sampling_disks(guest, every_s):
        await asyncio.sleep(1)
        began, before = time.monotonic(), _used(guest)
        await asyncio.sleep(seconds)
        after, took_s = _used(guest), time.monotonic() - began
    return [(late - early) / took_s * 100 for early, late in zip(before, after, strict=True)]


def _used(guest: Guest) -> tuple[float, float]:
    """Return the CPU seconds of this process, and of QEMU."""
    return _cpu_s(os.getpid()), _cpu_s(guest.pid)


def _cpu_s(pid: int) -> float:
    """Return the seconds that the threads of a process have run, to the nanosecond (proc(5): /proc/PID/schedstat)."""
    return (
        sum(
            int((task / "schedstat").read_text(encoding="utf-8").split()[0])
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
        / 1e9
    )


async def _changes(guest: Guest, name: str, count: int) -> list[Row]:
    """Change a limit repeatedly under load: how many changes failed, and how long one takes."""
    path, failed = guest.disks[name].path, 0
    loading = asyncio.create_task(fio.run(guest, path, *_DEEP, "--bs=4k", seconds=600))
    await asyncio.sleep(1)
    began = time.monotonic()
    for number in range(count):
        wanted = Throttle(iops_total=500 + number)
        await guest.hardware.throttle(name, wanted)
        failed += (await guest.hardware.condition(name)).throttle != wanted
    took_ms = (time.monotonic() - began) * 1000 / max(count, 1)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    return [
        {"limit": 0, "measured": failed, "unit": f"of {count} changes under load failed"},
        {"limit": None, "measured": round(took_ms, 2), "unit": "ms a change, read back twice"},
    ]
