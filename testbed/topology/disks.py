"""Disks as a topology file says them: one class a kind, with the kind's own keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from testbed.hardware.latency import Latency
from testbed.hardware.throttle import Throttle
from testbed.topology.base import Duration, Model, Name, Rate, Size, TupleOf
from testbed.units import MIB

BlockSize = Literal[512, 1024, 2048, 4096]
ReadError = Literal["report", "stop", "ignore"]
WriteError = Literal["report", "stop", "ignore", "enospc"]
Queues = Annotated[int, Field(ge=1, le=64)]
# What a disk with a volatile cache of its own does with a flush: writes the cache out, or only says so.
Cache = Literal["volatile", "lies"]
LIES: Cache = "lies"
Seconds = Annotated[int, Field(ge=0, le=1_000_000)]


class Limits(Model):
    """Limits of a throttle group, in QEMU's words; absent or 0 is unlimited. `*-max`: what a burst reaches, `*-max-length`: its seconds."""

    iops_total: Rate = 0
    iops_read: Rate = 0
    iops_write: Rate = 0
    bps_total: Rate = 0
    bps_read: Rate = 0
    bps_write: Rate = 0
    iops_total_max: Rate = 0
    iops_read_max: Rate = 0
    iops_write_max: Rate = 0
    bps_total_max: Rate = 0
    bps_read_max: Rate = 0
    bps_write_max: Rate = 0
    iops_total_max_length: Seconds = 0
    iops_read_max_length: Seconds = 0
    iops_write_max_length: Seconds = 0
    bps_total_max_length: Seconds = 0
    bps_read_max_length: Seconds = 0
    bps_write_max_length: Seconds = 0
    iops_size: Rate = 0

    def throttle(self) -> Throttle:
        return Throttle(**self.model_dump())


class Delays(Model):
    """What each request takes longer: `both` directions and flushes, or each by itself; `jitter` more or less."""

    both: Duration = 0
    read: Duration = 0
    write: Duration = 0
    flush: Duration = 0
    jitter: Duration = 0

    def latency(self) -> Latency:
        read, write, flush = (way or self.both for way in (self.read, self.write, self.flush))
        return Latency(read_us=read, write_us=write, flush_us=flush, jitter_us=self.jitter)


class Partition(Model):
    """One partition of a GPT label; without a size it takes what is left."""

    size: Size | None = None


# Whoever wrote a topology shall not show a guest, and so QEMU, any file of whoever starts it: only what is meant to be a disk.
IMAGE = r"\.(img|raw|qcow2|iso|ext4|xfs|btrfs|f2fs)$"


class Disk(Model):
    """An emulated disk. Empty and sparse (`raw`, `qcow2`), without storage (`null-co`), or an overlay of an existing `image`, which is
    qcow2 or raw as its name says, or `image-format`.

    `hot` disks are plugged when the guest is up, `cold` ones are there when it boots, for which it cannot be a warm clone.
    `cache`: of its own, of `cache-size`, whose content a power cut loses: `volatile` writes it out at a flush, `lies` acknowledges flushes
    and does nothing. Without one, what a disk has acknowledged is there.
    """

    type: Literal["virtio-blk", "nvme", "virtio-scsi"]
    size: Size
    format: Literal["raw", "qcow2", "null-co"] = "raw"
    image: Annotated[str, Field(max_length=1000, pattern=IMAGE)] | None = None
    image_format: Literal["raw", "qcow2"] | None = None
    plug: Literal["hot", "cold"] = "hot"
    serial: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,20}$")] | None = None
    read_only: bool = False
    write_cache: bool = True
    discard: bool = True
    queues: Queues | None = None
    logical_block_size: BlockSize = 512
    physical_block_size: BlockSize | None = None
    profile: str | None = None
    scale: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None
    latency: Delays | None = None
    throttle: Limits | None = None
    throttle_group: Name | None = None
    read_ahead: Size | None = None
    cache: Cache | None = None
    cache_size: Size = 16 * MIB
    partitions: TupleOf[Partition] = ()

    @property
    def cold(self) -> bool:
        return self.plug == "cold"

    @property
    def image_kind(self) -> Literal["raw", "qcow2"]:
        """The format that its image is attached in."""
        return self.image_format or ("qcow2" if self.image is not None and self.image.endswith(".qcow2") else "raw")


class VirtioBlk(Disk):
    """virtio-blk-pci. `rerror`, `werror`: what QEMU does with an error of its own: the guest gets it (`report`), or stands still until
    somebody lets it go on and the request is tried again (`stop`; `enospc`: only where there is no room), or hears nothing (`ignore`).
    """

    type: Literal["virtio-blk"]
    rerror: ReadError = "report"
    werror: WriteError = "report"
    queue_size: Literal[16, 32, 64, 128, 256, 512, 1024] | None = None
    io_thread: bool = False


class Zoned(Model):
    """Zones of an NVMe namespace (ZNS); 0 is no limit."""

    zone_size: Size
    max_open: Annotated[int, Field(ge=0)] = 0
    max_active: Annotated[int, Field(ge=0)] = 0


class Namespace(Model):
    """A further namespace of an NVMe controller."""

    size: Size
    logical_block_size: BlockSize = 512
    zoned: Zoned | None = None


class Nvme(Disk):
    """An NVMe controller. What stands beside `namespaces` is its first one; namespaces and zones cannot be hot-plugged."""

    type: Literal["nvme"]
    zoned: Zoned | None = None
    namespaces: dict[Name, Namespace] = Field(default_factory=dict)

    @property
    def cold(self) -> bool:
        return self.plug == "cold" or bool(self.namespaces) or self.zoned is not None


class VirtioScsi(Disk):
    """A disk alone on a virtio-scsi-pci controller. `rerror`, `werror`: as with virtio-blk; NVMe has no such choice, and reports."""

    type: Literal["virtio-scsi"]
    rerror: ReadError = "report"
    werror: WriteError = "report"


DiskOfKind = VirtioBlk | Nvme | VirtioScsi
AnyDisk = Annotated[DiskOfKind, Field(discriminator="type")]
_ANY: TypeAdapter[DiskOfKind] = TypeAdapter(AnyDisk)


def make_disk(**keys: object) -> DiskOfKind:
    """The disk that a mapping of the file would be, with Python's names as keys: `disk_of(type="nvme", size="1G", read_only=True)`."""
    return _ANY.validate_python({name.replace("_", "-"): value for name, value in keys.items()})
