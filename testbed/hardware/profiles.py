"""Speeds of named devices: one row a device, each number with its source. Rates are bytes and requests a second, 0 is unlimited."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.units import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """Limits of one throttle group, under the names of QEMU's `ThrottleLimits` (qapi/block-core.json); 0 is unlimited.

    A total excludes the read and write limit of the same unit, as in QEMU.
    """

    iops_total: int = 0
    iops_read: int = 0
    iops_write: int = 0
    bps_total: int = 0
    bps_read: int = 0
    bps_write: int = 0
    iops_size: int = 0

    @property
    def unlimited(self) -> bool:
        return self == Throttle()

    def limits(self) -> dict[str, int]:
        """QEMU's `ThrottleLimits`: every limit named, so that setting it leaves nothing of an earlier one."""
        return {name.replace("_", "-"): getattr(self, name) for name in self.__slots__}


PROFILES: dict[str, Throttle] = {
    # One random access is a seek of 8.2 ms and half a turn of 4.16 ms, hence 80 a second; 150 MB/s is the middle of the
    # published 83 to 175 MB/s from the inner to the outer tracks (7200 rpm desktop drive data sheets).
    "hdd-7200": Throttle(iops_total=80, bps_total=150_000_000),
    # 560/530 MB/s and 98k/88k IOPS: Samsung 870 EVO data sheet.
    "ssd-sata": Throttle(iops_read=98_000, iops_write=88_000, bps_read=560_000_000, bps_write=530_000_000),
    # 3500/3300 MB/s and 600k/550k IOPS: Samsung 970 EVO Plus data sheet (1 TB).
    "nvme-consumer": Throttle(iops_read=600_000, iops_write=550_000, bps_read=3_500_000_000, bps_write=3_300_000_000),
    # Baseline of a gp3 volume: 3000 IOPS, 125 MiB/s; one I/O counts up to 256 KiB (AWS EBS user guide, "General Purpose SSD volumes").
    "aws-gp3": Throttle(iops_total=3000, bps_total=125 * MIB, iops_size=256 * KIB),
    # SD Physical Layer Specification 6.0, application performance classes: A1 is 1500 read and 500 write IOPS, 10 MB/s sustained.
    "sd-a1": Throttle(iops_read=1500, iops_write=500, bps_total=10_000_000),
}
