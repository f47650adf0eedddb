"""Reads again and again what a guest's emulated disks have counted: an oracle that the kernel in the guest cannot bend.

A sample is a JSON object: `monotonic_s` (ours) and `guest_s` (the guest's uptime, at most `guest_error_s` off), and for each of `disks`
    rd, wr, flush    `requests`, `failed`, `bytes` and `merged` (not for flushes), `time_ns` of all requests together, and `latency`: how
                     many took less than each of BOUNDARIES_NS, and at last how many took longer; all since the disk was plugged in
    throttle         the limits that it has now, by their names in QEMU, and none that is off
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from testbed.errors import HostError
from testbed.guest import clock
from testbed.guest.clock import Clock
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings, recorder
from testbed.hardware.throttle import from_qemu_limits
from testbed.qemu import blockdev

LOG = "samples.jsonl"
_WAYS = ("rd", "wr", "flush")
# Upper bounds of what a request takes, in nanoseconds: 50 us to 20 s.
BOUNDARIES_NS = tuple(number * 10**power for power in range(4, 10) for number in (5, 10, 20))
# Nobody asks any longer.
_IDLE_S = 5.0


class DiskSampler:
    """Of one guest. Latencies are counted from its first sample on."""

    def __init__(self, guest: Guest, at: Clock) -> None:
        self._guest, self._clock = guest, at
        self._limits: dict[str, dict[str, int]] = {}
        self._limits_of = 0
        self._idle: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, guest: Guest) -> DiskSampler:
        """:raise GuestError: the guest does not say what time it is."""
        return cls(guest, await clock.read_clock(guest))

    def is_of(self, guest: Guest) -> bool:
        return guest is self._guest

    async def sample(self) -> dict[str, Any]:
        """One sample.

        :raise GuestError: QEMU is gone. :raise HostError: it does not answer.
        """
        if self._idle is not None:
            self._idle.cancel()
        try:
            return await asyncio.to_thread(self.read)
        finally:
            self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._guest.blocking_monitor.disconnect_if_idle)

    def read(self) -> dict[str, Any]:
        """One sample, for a thread of its own: it waits for QEMU. Raises as `sample`; afterwards the guest's `poller` must rest."""
        ask = self._guest.blocking_monitor.execute
        at = time.monotonic()
        if self._limits_of != self._guest.hardware.limits_changed:
            # They do not change by themselves, and to ask for them takes as long as all of the rest.
            self._limits, self._limits_of = {}, self._guest.hardware.limits_changed
        found = {}
        for name, entry in readings.group_by_disk(self._guest, ask(readings.BLOCKSTATS)).items():
            stats = entry["stats"]
            if "rd_latency_histogram" not in stats:
                self._count_latencies(entry["qdev"])
            ways = {way: _way(stats, way) for way in _WAYS}
            if name not in self._limits:
                self._limits[name] = self._throttle(name)
            found[name] = {**ways, "throttle": self._limits[name]}
        guest_s = round(self._clock.uptime(at), 4)
        return {
            "monotonic_s": round(at, 6),
            "guest_s": guest_s,
            "guest_error_s": round(self._clock.error_s, 4),
            "disks": found,
        }

    def _count_latencies(self, device: str) -> None:
        """Let QEMU count how long a disk's requests take, from now on; one that comes back must be told again."""
        with contextlib.suppress(HostError):  # it is just going
            self._guest.blocking_monitor.execute(
                "block-latency-histogram-set", {"id": device, "boundaries": list(BOUNDARIES_NS)}
            )

    def _throttle(self, name: str) -> dict[str, int]:
        group = blockdev.throttle_group(name, self._guest.model.disks[name])
        limits = from_qemu_limits(
            self._guest.blocking_monitor.execute("qom-get", {"path": f"/objects/{group}", "property": "limits"})
        )
        return {key.replace("_", "-"): value for key, value in limits.given().items()}


def _way(stats: dict[str, Any], way: str) -> dict[str, Any]:
    found = {
        "requests": stats[f"{way}_operations"],
        "failed": stats[f"failed_{way}_operations"],
        "time_ns": stats[f"{way}_total_time_ns"],
    }
    if way != "flush":
        found |= {"bytes": stats[f"{way}_bytes"], "merged": stats[f"{way}_merged"]}
    histogram = stats.get(f"{way}_latency_histogram")
    return found | ({"latency": histogram["bins"]} if histogram else {})


@contextlib.asynccontextmanager
async def sampling_disks(guest: Guest, every_s: float | None = None) -> AsyncIterator[None]:
    """Write samples, a line each, beside the guest's logs meanwhile: so often, or as its topology says, or none.

    :raise GuestError: the guest does not say what time it is.
    """
    if every_s is None and guest.model.sample is not None:
        every_s = guest.model.sample / 1e6
    if every_s is None:
        yield
        return
    sampler = await DiskSampler.start(guest)
    try:
        async with recorder.record_samples_in_thread(
            sampler.read, guest.blocking_monitor.close, every_s, guest.logs / LOG
        ):
            yield
    finally:
        guest.blocking_monitor.disconnect_if_idle()
