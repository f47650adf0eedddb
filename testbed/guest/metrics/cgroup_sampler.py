"""Reads again and again what a guest's control groups have counted: asks process 1, which is there anyway and in the root group.

A sample is a JSON object: `monotonic_s` (ours), `guest_s` (the guest's uptime when it was read) and `guest_error_s` (they are at most that
far apart), and by its path for each control group below the root that has counted since the last sample, or None for one that is gone:
    memory, anon, file, shmem, slab    bytes that it has now (memory.current, memory.stat)
    oom_kill                           tasks of it that were killed
    memory_stall_us, io_stall_us       how long some task has waited, in all (memory.pressure, io.pressure)
    io                                 by device, a disk by its name in the topology, the guest's own as `root disk`: rbytes, wbytes,
                                       rios, wios
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
# Of the guest's time: an answer about 8 groups took 15 ms, one about 64 groups 75 to 150 ms (`./tb bench sampling`).
_MOST_SHARE = 0.04
_LOOP = 7  # the major number of loop devices, Documentation/admin-guide/devices.txt


class CgroupSampler:
    """Of one guest. The first sample has every group, later ones those that have counted since."""

    def __init__(self, guest: Guest) -> None:
        self._guest, self._fresh = guest, True

    async def sample(self) -> dict[str, Any]:
        """One sample.

        :raise GuestError: the guest does not answer.
        """
        guest = self._guest
        asked = time.monotonic()
        lines, said = await guest.wait(
            guest.agent.ask("counts", **({"fresh": "1"} if self._fresh else {})), guest.deadlines.command_s
        )
        uptime_s = clock.parse_uptime(said)
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
    major, _, minor = number.partition(":")
    return names.get(number) or (f"loop{minor}" if major == str(_LOOP) else number)


@contextlib.asynccontextmanager
async def sampling_cgroups(guest: Guest, every_s: float | None) -> AsyncIterator[None]:
    """Write samples, a line each, beside the guest's logs meanwhile; none where `every_s` is None."""
    if every_s is None:
        yield
        return
    async with recorder.record_samples(CgroupSampler(guest).sample, every_s, guest.logs / LOG, most_share=_MOST_SHARE):
        yield
