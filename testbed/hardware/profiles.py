"""Named devices: one row each, every number with its source. `docs/hardware.md` shows the table."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.throttle import Throttle
from testbed.units import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The properties of a device.

    `source`: where its numbers are from. `latency`: only if it is more than what emulation takes, and not implied by
    the rate of requests: a disk with one arm that makes 80 requests a second takes 12.5 ms for each.
    """

    title: str
    source: str
    throttle: Throttle
    latency: Latency = NO_DELAY

    def scaled(self, factor: float) -> Profile:
        """Return a device that is `factor` times as fast, for a host that cannot reach the profile, or a test that must
        take less time.
        """
        throttle, latency = self.throttle.scaled(factor), self.latency.scaled(factor)
        return Profile(title=self.title, source=self.source, throttle=throttle, latency=latency)


PROFILES: dict[str, Profile] = {
    "hdd-7200": Profile(
        title="7200 rpm hard disk",
        source="Seek 8.2 ms and half a turn 4.16 ms are 80 requests a second (HGST Ultrastar 7K4000 specification, "
        "4.4.1); 150 MB/s is the middle of 83 to 175 MB/s from the inner to the outer tracks (desktop drives' "
        "data sheets)",
        throttle=Throttle(iops_total=80, bps_total=150_000_000),
    ),
    "hdd-5400": Profile(
        title="5400 rpm hard disk",
        source="Seek 12 ms and half a turn 5.5 ms are 57 requests a second (Hitachi 5K320 SATA OEM specification, "
        "4.4.2); 100 MB/s is chosen, 2.5 inch drives being at 80 to 140 MB/s",
        throttle=Throttle(iops_total=57, bps_total=100_000_000),
    ),
    "ssd-sata": Profile(
        title="SATA SSD",
        source="560 and 530 MB/s, 98,000 and 88,000 IOPS: Samsung 870 EVO data sheet",
        throttle=Throttle(iops_read=98_000, iops_write=88_000, bps_read=560_000_000, bps_write=530_000_000),
    ),
    "nvme-consumer": Profile(
        title="consumer NVMe SSD",
        source="3500 and 3300 MB/s, 600,000 and 550,000 IOPS: Samsung 970 EVO Plus data sheet, 1 TB",
        throttle=Throttle(iops_read=600_000, iops_write=550_000, bps_read=3_500_000_000, bps_write=3_300_000_000),
    ),
    "nvme-datacentre": Profile(
        title="datacentre NVMe SSD",
        source="3200 and 600 MB/s, 279,500 and 30,500 IOPS: Intel SSD DC P4500 product brief, 1 TB; its 85 and 20 us "
        "are less than an emulated request takes",
        throttle=Throttle(iops_read=279_500, iops_write=30_500, bps_read=3_200_000_000, bps_write=600_000_000),
    ),
    "aws-gp3": Profile(
        title="AWS gp3 volume, baseline",
        source='3000 IOPS, 125 MiB/s, one I/O counts up to 256 KiB (AWS EBS user guide, "General Purpose SSD '
        'volumes"); the guide says single-digit milliseconds, of which 1 ms is chosen',
        throttle=Throttle(iops_total=3000, bps_total=125 * MIB, iops_size=256 * KIB),
        latency=Latency(read_us=1000, write_us=1000, flush_us=1000),
    ),
    "aws-gp2": Profile(
        title="AWS gp2 volume of up to 33 GiB, with its burst",
        source="100 IOPS, and 3000 for half an hour from a full bucket of 5.4 million credits; 128 MiB/s (AWS EBS "
        'user guide, "General Purpose SSD volumes")',
        throttle=Throttle(
            iops_total=100, iops_total_max=3000, iops_total_max_length=1800, bps_total=128 * MIB, iops_size=256 * KIB
        ),
    ),
    "aws-io2": Profile(
        title="AWS io2 volume",
        source="64,000 IOPS, 1000 MiB/s (AWS prescriptive guidance, EBS SSD storage types); one I/O counts up to 256 "
        "KiB; below 0.5 ms for 16 KiB",
        throttle=Throttle(iops_total=64_000, bps_total=1000 * MIB, iops_size=256 * KIB),
        latency=Latency(read_us=400, write_us=400, flush_us=400),
    ),
    "sd-a1": Profile(
        title="SD card, application class A1",
        source="1500 read and 500 write IOPS, 10 MB/s sustained: SD Physical Layer Specification 5.1, application "
        "performance class 1",
        throttle=Throttle(iops_read=1500, iops_write=500, bps_total=10_000_000),
    ),
    "sd-a2": Profile(
        title="SD card, application class A2",
        source="4000 read and 2000 write IOPS, 10 MB/s sustained: SD Physical Layer Specification 6.0, application "
        "performance class 2",
        throttle=Throttle(iops_read=4000, iops_write=2000, bps_total=10_000_000),
    ),
    "emmc-5.1": Profile(
        title="eMMC 5.1",
        source="250 and 125 MB/s, 11,000 and 13,000 IOPS: Samsung's announcement of its eMMC 5.1 of 64 GB, February "
        "2015",
        throttle=Throttle(iops_read=11_000, iops_write=13_000, bps_read=250_000_000, bps_write=125_000_000),
    ),
    "network-jitter": Profile(
        title="disk over a network that is busy",
        source="Chosen, not published: 10 ms give or take 8 ms, and what is left of a shared gigabit link",
        throttle=Throttle(bps_total=60_000_000),
        latency=Latency(read_us=10_000, write_us=10_000, flush_us=10_000, jitter_us=8_000),
    ),
}
