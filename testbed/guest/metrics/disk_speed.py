"""Measures how fast this machine's emulated disks are at most, caches that, and finds profiles of a topology that are
faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed.guest.factory import GuestFactory
from testbed.guest.metrics import fio
from testbed.hashing import content_key
from testbed.host.facts import Host
from testbed.qemu import blockdev
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.text import parse_json
from testbed.topology.disks import make_disk
from testbed.topology.model import GuestModel
from testbed.units import MIB, format_size

KINDS = ("virtio-blk", "nvme", "virtio-scsi")
# Small enough that the host caches all of it in memory: only the emulation is measured.
_SIZE = 256 * MIB
_DEEP = ("--ioengine=libaio", "--iodepth=32")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpeed:
    """The speed of one kind of disk: random reads of 4 KiB a second and bytes a second of sequential reads of 1 MiB,
    both at a queue depth of 32; and the median time of a single random read, in microseconds.
    """

    iops: float
    bytes_per_s: float
    read_us: float


async def measure(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, *, seconds: float = 3
) -> dict[str, DiskSpeed]:
    """Measure each kind of disk, one after the other, on a guest of their own.

    :raise GuestError: the guest is lost.
    """
    model = GuestModel(disks={f"d{number}": make_disk(type=kind, size=_SIZE) for number, kind in enumerate(KINDS)})
    found = {}
    async with (
        factory.admitted((model,), "bench", cores=factory.host.cores),
        factory.guest("bench", model, kernel, logs) as guest,
    ):
        for number, kind in enumerate(KINDS):
            path = guest.disks[f"d{number}"].path
            await guest.run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "oflag=direct", "status=none", check=False)
            many = await fio.run(guest, path, *_DEEP, "--bs=4k", seconds=seconds)
            long = await fio.run(guest, path, *_DEEP, "--bs=1M", rw="read", seconds=seconds)
            alone = await fio.run(guest, path, "--bs=4k", seconds=seconds)
            found[kind] = DiskSpeed(iops=many.iops, bytes_per_s=long.bytes_per_s, read_us=alone.median_us)
    return found


def _file(cache: Path, host: Host) -> Path:
    return cache / "reach" / f"{content_key(host.qemu.identity, host.accelerator, str(host.cores))}.json"


def save(found: Mapping[str, DiskSpeed], cache: Path, host: Host) -> None:
    """Write the speeds into the cache, for this machine and its QEMU."""
    file = _file(cache, host)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps({kind: asdict(speed) for kind, speed in found.items()}), encoding="utf-8")
    unfinished.replace(file)


def load(cache: Path, host: Host) -> dict[str, DiskSpeed]:
    """Return the speeds from the cache; empty if they were not measured."""
    try:
        return {
            kind: DiskSpeed(**values)
            for kind, values in parse_json(_file(cache, host).read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError):
        return {}


def too_fast_profiles(model: GuestModel, speeds: Mapping[str, DiskSpeed]) -> Iterator[str]:
    """Yield a warning for each disk whose profile is faster than this machine."""
    for name, disk in model.disks.items():
        if disk.profile is None or disk.type not in speeds:
            continue
        speed, limits = speeds[disk.type], blockdev.throttle_of(disk)
        requests = ("requests", max(limits.iops_total, limits.iops_read), speed.iops)
        bytes_ = ("bytes", max(limits.bps_total, limits.bps_read), speed.bytes_per_s)
        for what, asked, most in (requests, bytes_):
            if asked > most:
                expected, got = (format_size(value) if what == "bytes" else f"{value:.0f}" for value in (asked, most))
                scale = (disk.scale or 1) * most / asked
                yield (
                    f"disk {name}: expected {expected} {what} a second ({disk.profile}), this machine makes {got} at"
                    f" most (testbed bench disks), so that the machine is the limit; scale: {scale:.1g} is a device"
                    " that it can be"
                )
