"""Reads the counters of a running guest's disks and cgroups. Rates are the difference of two readings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from testbed import cgroupfs
from testbed.errors import ReadingError, TestbedError
from testbed.guest import shell_functions
from testbed.guest.guest import Guest
from testbed.guest.shell_functions import FileTexts
from testbed.qemu import blockdev

BLOCKSTATS = "query-blockstats"
_WAYS = ("rd", "wr")
# Each cgroup's small counters.
_COUNTERS = ("memory.events", "pids.events", "cgroup.stat", "memory.current", "memory.swap.current")
_COUNTERS_LIMIT_S = 10


async def block_devices(guest: Guest) -> dict[str, dict[str, Any]]:
    """Return the entry of `query-blockstats` for each disk of the topology that is plugged in: `stats`, and `qdev`, its
    QOM path.
    """
    return group_by_disk(guest, await guest.qmp.execute(BLOCKSTATS, log=False))


def group_by_disk(guest: Guest, found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sort the answer to `query-blockstats` by the names of the topology's disks."""
    # The qdev of virtio-blk is the QOM path of its backend, that of nvme the device's.
    named = [(str(entry.get("qdev", "")).split("/"), entry) for entry in found]
    return {name: entry for name in guest.model.disks for path, entry in named if f"disk-{name}" in path}


async def read_disks(guest: Guest) -> dict[str, dict[str, int]]:
    """Return QEMU's counters of each disk of the topology that is plugged in: rd_bytes, wr_operations and the like."""
    return {name: entry["stats"] for name, entry in (await block_devices(guest)).items()}


async def read_disk_bytes(guest: Guest) -> dict[str, tuple[int, int]]:
    """Return the bytes that each disk of the topology has read and written, as its emulated device counted them."""
    return {name: (own["rd_bytes"], own["wr_bytes"]) for name, own in (await read_disks(guest)).items()}


async def read_all(guest: Guest) -> dict[str, Any]:
    """Return `at`, the time in seconds, and `disks`: for each, the requests, bytes and time in each direction, its
    limits, and the bytes of each cgroup.

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
        for name, disk in found.items():
            counted = moved.get(guest.disks[name].number) if name in guest.disks else None
            if counted and "rbytes" in counted:
                disk["cgroups"][group] = counted["rbytes"] + counted["wbytes"]
    return {"at": at, "disks": found}


async def _groups(guest: Guest) -> dict[str, dict[str, dict[str, int]]]:
    """Return the io.stat of each cgroup, by MAJ:MIN. Skips what cannot be read now: this is for display only."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    if guest.hardware.errors.stopped:
        return found
    with contextlib.suppress(TestbedError):  # a guest that hangs still has an emulated disk
        taken = await read_cgroups(guest, ("io.stat",), depths=(1, 2, 3))
        for path, text in taken.texts.items():
            with contextlib.suppress(ReadingError):
                moved = cgroupfs.parse_io_stat(text, taken.where(path))
                found[path.removeprefix(f"{cgroupfs.ROOT}/").removesuffix("/io.stat")] = moved
    return found


async def _limits(guest: Guest, name: str) -> dict[str, int]:
    """Return the limits that QEMU has set for a disk now."""
    group = blockdev.throttle_group(name, guest.model.disks[name])
    limits = await guest.monitor.throttle_limits(group)
    kinds = (f"{unit}-{which}" for unit in ("iops", "bps") for which in ("total", "read", "write"))
    return {kind: limits[kind] for kind in kinds if limits.get(kind)}


async def take_files(
    guest: Guest, script: str, *arguments: str, timeout_s: float | None = None
) -> Mapping[str, FileTexts]:
    """Run a script that takes files of the guest by the functions of `shell_functions`, and return them by section.

    :raise GuestError: the guest does not answer. :raise ReadingError: the script did not come to its `finish`, or its
    output is cut.
    """
    mark = shell_functions.new_separator()
    done = await guest.script(shell_functions.function_definitions(mark) + script, *arguments, timeout_s=timeout_s)
    return shell_functions.sections(done.stdout, mark, guest.name)


async def read_cgroups(
    guest: Guest, files: Iterable[str], *, depths: Iterable[int], timeout_s: float | None = None
) -> FileTexts:
    """Read `files` of all cgroups at these depths (0: the root), by their paths; a cgroup without a file has no text of
    it.

    Raises as `take_files`.
    """
    script = shell_functions.take_cgroups(files, depths) + "finish\n"
    return (await take_files(guest, script, timeout_s=timeout_s))[""]


async def read_cgroup_counters(guest: Guest) -> dict[str, str]:
    """Read the small counters of all cgroups: text by path below the root.

    Raises as `take_files`.
    """
    texts = (await read_cgroups(guest, _COUNTERS, depths=range(4), timeout_s=_COUNTERS_LIMIT_S)).texts
    return {path.removeprefix(f"{cgroupfs.ROOT}/"): text for path, text in texts.items()}


async def read_counter(guest: Guest, texts: Mapping[str, str], cgroup: str, counter: str) -> int | None:
    """Return a counter, written `FILE` or `FILE NAME`, from `texts` of `read_cgroup_counters`, or read now if it is not
    there.

    None: the cgroup does not exist, or has no such file.

    :raise GuestError: the guest does not answer. :raise ReadingError: the file has no such name, or its value is no
    number.
    """
    name, _, key = counter.partition(" ")
    path = name if cgroup == "/" else f"{cgroup}/{name}"
    full = f"{cgroupfs.ROOT}/{path}"
    text = texts.get(path)
    if text is None:
        text = (await take_files(guest, 'take "$1"; finish', full, timeout_s=_COUNTERS_LIMIT_S))[""].texts.get(full)
        if text is None:
            return None
    return cgroupfs.parse_value(text, key, f"guest {guest.name}: {full}")
