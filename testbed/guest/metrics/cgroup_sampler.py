"""Samples the counters of a guest's cgroups, through process 1 of the guest, which runs in the root cgroup anyway.

A sample is a JSON object: `monotonic_s` (our clock), `guest_s` (the guest's uptime when the counters were read; the two
agree within `guest_error_s`), and `groups`: by path, each cgroup below the root whose counters changed since the last
sample, or null if it was removed:
    memory, anon, file, shmem, slab    bytes in use now (memory.current, memory.stat)
    oom_kill                           tasks that were killed
    memory_stall_us, io_stall_us       total time in which some task waited (memory.pressure, io.pressure)
    io                                 by device (a disk by its name in the topology, the guest's own as `root disk`):
                                       rbytes, wbytes, rios, wios
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from testbed import cgroupfs
from testbed.guest import clock
from testbed.guest.guest import Guest
from testbed.guest.metrics import recorder

LOG = "cgroups.jsonl"
# Share of the guest's time that samples may take: reading 8 cgroups took 15 ms, 64 cgroups 75 to 150 ms
# (`./tb bench sampling`).
_MOST_SHARE = 0.04
_LOOP = 7  # the major number of loop devices, Documentation/admin-guide/devices.txt


class CgroupSampler:
    """Samples one guest. The first sample has every cgroup, later ones those whose counters have changed."""

    def __init__(self, guest: Guest) -> None:
        self._guest, self._fresh = guest, True

    async def sample(self) -> dict[str, Any]:
        """Take one sample.

        :raise GuestError: the guest does not answer.
        """
        guest = self._guest
        asked = time.monotonic()
        lines, answer = await guest.wait(
            guest.agent.ask("counts", **({"fresh": "1"} if self._fresh else {})), guest.deadlines.command_s
        )
        uptime_s = clock.parse_uptime(answer)
        at = clock.clock_between(uptime_s, asked, time.monotonic())
        self._fresh = False
        groups = cgroupfs.parse_group_counts(lines)
        for group in groups.values():
            if group is not None:
                group["io"] = {_device(number, guest.disk_names): moved for number, moved in group["io"].items()}
        return {
            "monotonic_s": round(uptime_s - at.offset_s, 6),
            "guest_s": round(uptime_s, 4),
            "guest_error_s": round(at.error_s, 4),
            "groups": groups,
        }


def _device(number: str, names: dict[str, str]) -> str:
    """Return the name of a device by its MAJ:MIN."""
    major, _, minor = number.partition(":")
    return names.get(number) or (f"loop{minor}" if major == str(_LOOP) else number)


@contextlib.asynccontextmanager
async def sampling_cgroups(guest: Guest, every_s: float | None) -> AsyncIterator[None]:
    """Write samples into the guest's log folder, a line each, until the block ends; none if `every_s` is None."""
    if every_s is None:
        yield
        return
    async with recorder.record_samples(CgroupSampler(guest).sample, every_s, guest.logs / LOG, most_share=_MOST_SHARE):
        yield
