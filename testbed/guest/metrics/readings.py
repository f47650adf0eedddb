"""What a running guest's disks and control groups count, read at one moment; rates are the difference of two readings."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from testbed import cgroupfs
from testbed.errors import ReadingError, TestbedError
from testbed.guest import shell_functions
from testbed.guest.guest import Guest
from testbed.qemu import blockdev

BLOCKSTATS = "query-blockstats"
_WAYS = ("rd", "wr")
_ROOT = "/sys/fs/cgroup"
_IO_STAT = f"""\
for file in {_ROOT}/*/io.stat {_ROOT}/*/*/io.stat {_ROOT}/*/*/*/io.stat; do
    [ ! -e "$file" ] || take "$file"
done
finish
"""


async def block_devices(guest: Guest) -> dict[str, dict[str, Any]]:
    """What `query-blockstats` says of each of the topology's disks that is there: `stats`, and `qdev`, the device's own name."""
    return group_by_disk(
        guest, await guest.wait(guest.monitor.execute(BLOCKSTATS, kept=False), guest.spec.deadlines.monitor_s)
    )


def group_by_disk(guest: Guest, found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """An answer to `query-blockstats`, by the topology's names."""
    # virtio-blk is named by its backend's QOM path, nvme by the device.
    named = [(str(entry.get("qdev", "")).split("/"), entry) for entry in found]
    return {name: entry for name in guest.spec.model.disks for path, entry in named if f"disk-{name}" in path}


async def read_disks(guest: Guest) -> dict[str, dict[str, int]]:
    """QEMU's counters of each of the topology's disks that is there: rd_bytes, wr_operations and the like."""
    return {name: entry["stats"] for name, entry in (await block_devices(guest)).items()}


async def read_disk_bytes(guest: Guest) -> dict[str, tuple[int, int]]:
    """Bytes that each of the topology's disks has read and written, as its emulated device counted them."""
    return {name: (own["rd_bytes"], own["wr_bytes"]) for name, own in (await read_disks(guest)).items()}


async def read_all(guest: Guest) -> dict[str, Any]:
    """`at`: seconds; by disk its operations, bytes and time of requests in each direction, its limits, and each control group's bytes.

    :raise TestbedError: the guest does not answer.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, own in (await read_disks(guest)).items():
        ways = {
            way: {
                "requests": own[f"{way}_operations"],
                "bytes": own[f"{way}_bytes"],
                "time_ns": own[f"{way}_total_time_ns"],
            }
            for way in _WAYS
        }
        found[name] = {**ways, "limits": await _limits(guest, name), "cgroups": {}}
    at = time.monotonic()
    for group, moved in (await _groups(guest)).items():
        for name, gauge in found.items():
            counted = moved.get(guest.disks[name].number) if name in guest.disks else None
            if counted and "rbytes" in counted:
                gauge["cgroups"][group] = counted["rbytes"] + counted["wbytes"]
    return {"at": at, "disks": found}


async def _groups(guest: Guest) -> dict[str, dict[str, dict[str, int]]]:
    """What each control group has moved, by MAJ:MIN; without those whose counters cannot be read now: this is for looking at."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    if guest.hardware.errors.stopped:
        return found
    mark = shell_functions.new_separator()
    with contextlib.suppress(TestbedError):  # a guest that hangs still has an emulated disk
        said = await guest.script(shell_functions.function_definitions(mark) + _IO_STAT)
        taken = shell_functions.sections(said.stdout, mark, guest.name)[""]
        for path, text in taken.texts.items():
            with contextlib.suppress(ReadingError):
                moved = cgroupfs.parse_io_stat(text, taken.where(path))
                found[path.removeprefix(f"{_ROOT}/").removesuffix("/io.stat")] = moved
    return found


async def _limits(guest: Guest, name: str) -> dict[str, int]:
    """The limits that QEMU has for a disk now, without those that are off."""
    group = blockdev.throttle_group(name, guest.spec.model.disks[name])
    limits = await guest.monitor.limits(group)
    kinds = (f"{unit}-{which}" for unit in ("iops", "bps") for which in ("total", "read", "write"))
    return {kind: limits[kind] for kind in kinds if limits.get(kind)}
