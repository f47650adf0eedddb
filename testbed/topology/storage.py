"""What stands on the disks: filesystems, files, loop devices, swap, device-mapper and md.

Names of devices (disks, namespaces, loops, dm and md devices, and `NAME-p1` for partitions) are one set; filesystems have names of their
own, by default that of their device.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from testbed.topology.base import Model, PrintableText, Size, TupleOf
from testbed.topology.disks import BlockSize, Partition

FilesystemType = Literal["ext4", "xfs", "btrfs", "f2fs", "tmpfs"]
Allocation = Literal["sparse", "fallocated", "written"]

_NAME = r"[a-z][a-z0-9-]{0,19}"
_FILE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
DeviceName = Annotated[str, Field(pattern=rf"^{_NAME}$")]
FilePath = Annotated[str, Field(pattern=rf"^{_NAME}/{_FILE}$")]
DeviceOrFile = Annotated[str, Field(pattern=rf"^{_NAME}(/{_FILE})?$")]


class Filesystem(Model):
    """A filesystem on a device, mounted at /mnt/NAME; tmpfs has no device.

    `make`: make it first, or mount what an image holds. `mkfs` and `mount` are options as words."""

    type: FilesystemType
    device: DeviceName | None = None
    make: bool = True
    mkfs: TupleOf[PrintableText] = ()
    mount: TupleOf[PrintableText] = ()


class File(Model):
    """A file on a filesystem: a hole, allocated by fallocate, or written in full with zeroes."""

    path: FilePath
    size: Size
    allocate: Allocation = "written"


class Loop(Model):
    """A loop device on a file or on another device.

    `backing` is `NAME/FILE` on the filesystem NAME, or the name of a device. Where no filesystem NAME is declared, `filesystem` is made on
    the device NAME (for tmpfs a new one); where no file is declared there, one of `size` is made.
    """

    backing: DeviceOrFile
    filesystem: FilesystemType = "ext4"
    size: Size | None = None
    allocate: Allocation | None = None
    direct_io: bool = False
    read_only: bool = False
    partition_scan: bool = False
    offset: Annotated[int, Field(ge=0)] | Size = 0
    size_limit: Size | None = None
    logical_block_size: BlockSize | None = None
    read_ahead: Size | None = None
    partitions: TupleOf[Partition] = ()

    @property
    def holder(self) -> str:
        """Name of the filesystem that holds the backing file, or of the device."""
        return self.backing.partition("/")[0]

    @property
    def file(self) -> str:
        """Name of the backing file there; empty on a device."""
        return self.backing.partition("/")[2]


class Swap(Model):
    """Swap on a device or on a file, which is made with `size` if none is declared there."""

    on: DeviceOrFile
    size: Size | None = None
    priority: Annotated[int, Field(ge=0, le=32767)] | None = None


class Dm(Model):
    """A device-mapper device: `linear` joins devices, `crypt` is one behind dm-crypt with a key of its own."""

    type: Literal["linear", "crypt"]
    on: Annotated[TupleOf[DeviceName], Field(min_length=1, max_length=16)]


class Md(Model):
    """An md array without metadata."""

    level: Literal["raid0", "raid1"]
    on: Annotated[TupleOf[DeviceName], Field(min_length=2, max_length=16)]
