"""Disks in a topology file: one class per kind of disk, with the keys of that kind."""

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
# What a disk with a volatile cache does on a flush: it writes the cache out, or only claims to.
Cache = Literal["volatile", "lies"]
LIES: Cache = "lies"
Seconds = Annotated[int, Field(ge=0, le=1_000_000)]


class Limits(Model):
    """Limits of a throttle group, with QEMU's names; absent or 0 means unlimited.

    `*-max`: the rate that a burst reaches; `*-max-length`: its length in seconds.
    """

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
    """Extra latency of each request: of `both` directions and flushes, or of each kind. `jitter`: more or less."""

    both: Duration = 0
    read: Duration = 0
    write: Duration = 0
    flush: Duration = 0
    jitter: Duration = 0

    def latency(self) -> Latency:
        read, write, flush = (way or self.both for way in (self.read, self.write, self.flush))
        return Latency(read_us=read, write_us=write, flush_us=flush, jitter_us=self.jitter)


class Partition(Model):
    """One partition of a GPT label; without a size it takes the rest of the disk."""

    size: Size | None = None


# A topology from somebody else must not give QEMU and the guest any file of the user: only disk images, by name.
IMAGE = r"\.(img|raw|qcow2|iso|ext4|xfs|btrfs|f2fs)$"


class Disk(Model):
    """An emulated disk: empty and sparse (`raw`, `qcow2`), without storage (`null-co`), or an overlay of an `image`.

    The image is qcow2 or raw according to its name, or to `image-format`. `hot` disks are plugged when the guest is up;
    `cold` disks are present at boot, so that the guest cannot be a warm clone. `cache`: a volatile cache of
    `cache-size`, whose content is lost when the power is cut: `volatile` writes it out on a flush, `lies` acknowledges
    a flush without doing it. A disk without a cache keeps all that it has acknowledged.
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
        """The format of its image."""
        return self.image_format or ("qcow2" if self.image is not None and self.image.endswith(".qcow2") else "raw")


class VirtioBlk(Disk):
    """virtio-blk-pci. `rerror`, `werror`: what QEMU does when a read or write fails on the host.

    `report`: the guest gets the error. `stop`: the guest is stopped until it is continued, and the request is tried
    again (`enospc`: only if the host's disk is full). `ignore`: the guest is not told.
    """

    type: Literal["virtio-blk"]
    rerror: ReadError = "report"
    werror: WriteError = "report"
    queue_size: Literal[16, 32, 64, 128, 256, 512, 1024] | None = None
    io_thread: bool = False


class Zoned(Model):
    """Zones of an NVMe namespace (ZNS); 0 means no limit."""

    zone_size: Size
    max_open: Annotated[int, Field(ge=0)] = 0
    max_active: Annotated[int, Field(ge=0)] = 0


class Namespace(Model):
    """An additional namespace of an NVMe controller."""

    size: Size
    logical_block_size: BlockSize = 512
    zoned: Zoned | None = None


class Nvme(Disk):
    """An NVMe controller. The keys beside `namespaces` describe its first namespace.

    A controller with more namespaces or with zones cannot be hot-plugged.
    """

    type: Literal["nvme"]
    zoned: Zoned | None = None
    namespaces: dict[Name, Namespace] = Field(default_factory=dict)

    @property
    def cold(self) -> bool:
        return self.plug == "cold" or bool(self.namespaces) or self.zoned is not None


class VirtioScsi(Disk):
    """A single disk on a virtio-scsi-pci controller.

    `rerror`, `werror`: as with virtio-blk; NVMe has no such option, and always reports.
    """

    type: Literal["virtio-scsi"]
    rerror: ReadError = "report"
    werror: WriteError = "report"


DiskOfKind = VirtioBlk | Nvme | VirtioScsi
AnyDisk = Annotated[DiskOfKind, Field(discriminator="type")]
_ANY: TypeAdapter[DiskOfKind] = TypeAdapter(AnyDisk)


def make_disk(**keys: object) -> DiskOfKind:
    """Make a disk from the keys of the file with underscores: `make_disk(type="nvme", size="1G", read_only=True)`."""
    return _ANY.validate_python({name.replace("_", "-"): value for name, value in keys.items()})
