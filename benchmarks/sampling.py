"""Measures the cost of sampling disks and cgroups: in QEMU, in this process, and in the guest's throughput."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from testbed.guest.factory import open_factory
from testbed.guest.guest import Guest
from testbed.guest.metrics import fio
from testbed.guest.metrics.cgroup_sampler import LOG, sampling_cgroups
from testbed.guest.metrics.disk_sampler import sampling_disks
from testbed.host import tempdirs
from testbed.report import live
from testbed.topology import GuestModel
from testbed.topology.disks import make_disk
from testbed.units import MIB

Row = dict[str, Any]
# Each cgroup has counted something, and half of them continue to.
_GROUPS = """\
cd /sys/fs/cgroup || exit
n=0
while [ $n -lt "$1" ]; do
    mkdir -p "bench-$n"
    (echo 0 >"bench-$n/cgroup.procs"; exec dd "if=$2" of=/dev/null bs=4k count=1 iflag=direct status=none)
    n=$((n + 1))
done
"""


async def measure(*, kernel: str, seconds: float, rounds: int) -> list[Row]:
    """Return a row for each rate and number of cgroups."""
    model = GuestModel(disks={"data": make_disk(type="virtio-blk", size=64 * MIB)})
    rows: list[Row] = []
    with tempdirs.temporary() as folder, live.progress(Console(stderr=True)) as progress:
        async with open_factory(progress, kernels=(kernel,)) as factory:
            for groups in (0, 8, 64):
                async with factory.guest("bench", model, await factory.kernel(kernel), folder / str(groups)) as guest:
                    await guest.script(_GROUPS, str(groups), guest.disks["data"].path)
                    for every_s in (0.25, 0.5, 1.0):
                        with progress.task(f"{groups} groups, every {every_s} s"):
                            rows.append({"groups": groups, "every_s": every_s, **await _idle(guest, every_s, seconds)})
                    with progress.task(f"{groups} groups at work"):
                        rows.append({"groups": groups, "every_s": 0.5, **await _loaded(guest, 0.5, seconds, rounds)})
    return rows


@contextlib.asynccontextmanager
async def _both(guest: Guest, every_s: float | None) -> Any:
    async with sampling_disks(guest, every_s), sampling_cgroups(guest, every_s):
        yield


async def _idle(guest: Guest, every_s: float, seconds: float) -> Row:
    """Return the percentage of a core that samples cost an idle guest, and how long the guest takes to answer."""
    costs = []
    for rate in (None, every_s):
        async with _both(guest, rate):
            await asyncio.sleep(1)
            began = _used(guest)
            await asyncio.sleep(seconds)
            costs.append([(after - before) / seconds * 100 for before, after in zip(began, _used(guest), strict=True)])
    ours, qemu = (round(with_it - without, 2) for without, with_it in zip(*costs, strict=True))
    samples = [json.loads(line) for line in (guest.logs / LOG).read_text(encoding="utf-8").splitlines()]
    answer_ms = statistics.median(sample["guest_error_s"] for sample in samples[-int(seconds / every_s) :]) * 2000
    return {"testbed_percent": ours, "qemu_percent": qemu, "answer_ms": round(answer_ms, 2)}


async def _loaded(guest: Guest, every_s: float, seconds: float, rounds: int) -> Row:
    """Return how many random reads of an unlimited disk samples cost, measured in turns without and with them."""
    done: dict[float | None, list[float]] = {None: [], every_s: []}
    for _ in range(rounds):
        for rate in done:
            async with _both(guest, rate):
                load = await fio.run(
                    guest, guest.disks["data"].path, "--ioengine=libaio", "--iodepth=16", "--bs=4k", seconds=seconds
                )
            done[rate].append(load.iops)
    without, with_it = (statistics.median(seen) for seen in done.values())
    return {
        "reads_s_without": round(without),
        "reads_s_with": round(with_it),
        "less_percent": round((1 - with_it / without) * 100, 2),
    }


def _used(guest: Guest) -> tuple[float, float]:
    """Return the CPU seconds of this process, and of QEMU."""
    fields = Path(f"/proc/{guest.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return time.process_time(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
