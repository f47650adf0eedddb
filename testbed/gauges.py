"""What a running guest's disks and control groups count, read at one moment; rates are the difference of two readings."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from testbed import counters, drives
from testbed.errors import TestbedError
from testbed.guest import Guest

BLOCKSTATS = "query-blockstats"
_WAYS = ("rd", "wr")
# The control groups' counters, by the shell itself: a program more takes longer than all of it.
_IO_STAT = """\
for file in /sys/fs/cgroup/*/io.stat /sys/fs/cgroup/*/*/io.stat /sys/fs/cgroup/*/*/*/io.stat; do
    [ ! -e "$file" ] || while read -r line; do echo "$file:$line"; done <"$file"
done
"""


async def devices(guest: Guest) -> dict[str, dict[str, Any]]:
    """What `query-blockstats` says of each of the topology's disks that is there: `stats`, and `qdev`, the device's own name."""
    return by_disk(guest, await guest.wait(guest.monitor.execute(BLOCKSTATS, kept=False), guest.order.deadlines.monitor_s))


def by_disk(guest: Guest, found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """An answer to `query-blockstats`, by the topology's names."""
    # virtio-blk is named by its backend's QOM path, nvme by the device.
    named = [(str(entry.get("qdev", "")).split("/"), entry) for entry in found]
    return {name: entry for name in guest.order.model.disks for path, entry in named if f"disk-{name}" in path}


async def disks(guest: Guest) -> dict[str, dict[str, int]]:
    """QEMU's counters of each of the topology's disks that is there: rd_bytes, wr_operations and the like."""
    return {name: entry["stats"] for name, entry in (await devices(guest)).items()}


async def disk_bytes(guest: Guest) -> dict[str, tuple[int, int]]:
    """Bytes that each of the topology's disks has read and written, as its emulated device counted them."""
    return {name: (own["rd_bytes"], own["wr_bytes"]) for name, own in (await disks(guest)).items()}


async def read(guest: Guest) -> dict[str, Any]:
    """`at`: seconds; by disk its operations, bytes and time of requests in each direction, its limits, and each control group's bytes.

    :raise TestbedError: the guest does not answer.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, own in (await disks(guest)).items():
        ways = {
            way: {"requests": own[f"{way}_operations"], "bytes": own[f"{way}_bytes"], "time_ns": own[f"{way}_total_time_ns"]}
            for way in _WAYS
        }
        found[name] = {**ways, "limits": await _limits(guest, name), "cgroups": {}}
    at = time.monotonic()
    said: dict[str, str] = {}
    if not guest.hardware.errors.stopped:
        with contextlib.suppress(TestbedError):  # a guest that hangs still has an emulated disk
            said = counters.by_file((await guest.script(_IO_STAT)).stdout)
    for path, text in said.items():
        group = path.removeprefix("/sys/fs/cgroup/").removesuffix("/io.stat")
        for number, counted in counters.parse_io_stat(text).items():
            for name, gauge in found.items():
                if name in guest.disks and guest.disks[name].number == number:
                    gauge["cgroups"][group] = counted.get("rbytes", 0) + counted.get("wbytes", 0)
    return {"at": at, "disks": found}


async def _limits(guest: Guest, name: str) -> dict[str, int]:
    """The limits that QEMU has for a disk now, without those that are off."""
    group = drives.throttle_group(name, guest.order.model.disks[name])
    limits = await guest.monitor.limits(group)
    kinds = (f"{unit}-{which}" for unit in ("iops", "bps") for which in ("total", "read", "write"))
    return {kind: limits[kind] for kind in kinds if limits.get(kind)}
