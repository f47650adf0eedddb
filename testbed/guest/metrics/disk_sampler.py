"""Samples the counters of a guest's emulated disks, which the kernel in the guest cannot falsify.

A sample is a JSON object: `monotonic_s` (our clock), `guest_s` (the guest's uptime, within `guest_error_s`), and for
each of `disks`
    rd, wr, flush    `requests`, `failed`, `bytes` and `merged` (not for flushes), `time_ns` of all requests together,
                     and `latency`: how many took less than each of BOUNDARIES_NS, and finally how many took longer;
                     all since the disk was plugged in
    throttle         the limits that are set now, by their names in QEMU
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
# Upper bounds of a request's time in the histogram, in nanoseconds: 50 us to 20 s.
BOUNDARIES_NS = tuple(number * 10**power for power in range(4, 10) for number in (5, 10, 20))
# After this time without a sample, the monitor for samples is released.
_IDLE_S = 5.0


class DiskSampler:
    """Samples one guest. Latencies are counted from the first sample on."""

    def __init__(self, guest: Guest, at: Clock) -> None:
        self._guest, self._clock = guest, at
        self._limits: dict[str, dict[str, int]] = {}
        self._limits_of = 0
        self._idle: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, guest: Guest) -> DiskSampler:
        """Make a sampler.

        :raise GuestError: the guest's clock cannot be read.
        """
        return cls(guest, await clock.read_clock(guest))

    def is_of(self, guest: Guest) -> bool:
        """Return whether the sampler is for this guest."""
        return guest is self._guest

    async def sample(self) -> dict[str, Any]:
        """Take one sample.

        :raise GuestError: QEMU has ended. :raise HostError: it does not answer.
        """
        if self._idle is not None:
            self._idle.cancel()
        try:
            return await asyncio.to_thread(self.read)
        finally:
            self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._guest.blocking_monitor.disconnect_if_idle)

    def read(self) -> dict[str, Any]:
        """Take one sample, in a thread, since it blocks.

        Raises as `sample`; afterwards call `blocking_monitor.rest`.
        """
        ask = self._guest.blocking_monitor.execute
        at = time.monotonic()
        if self._limits_of != self._guest.hardware.limits_changed:
            # Limits change only by our commands, and reading them takes as long as all the rest.
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
        """Make QEMU count a disk's latencies from now on; needed again after the disk was plugged in again."""
        with contextlib.suppress(HostError):  # it is being unplugged
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
    """Return the counters of one kind of requests."""
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
    """Write samples into the guest's log folder, a line each, until the block ends: at this interval, or the
    topology's, or none.

    :raise GuestError: the guest's clock cannot be read.
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
