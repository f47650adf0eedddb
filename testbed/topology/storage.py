"""The storage stack on the disks: filesystems, files, loop devices, swap, device-mapper and md.

All devices (disks, namespaces, loops, dm and md devices, partitions as `NAME-p1`) share one set of names. Filesystems
have a separate set; by default a filesystem has the name of its device.
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

    `make`: run mkfs first; false mounts the filesystem of an image. `mkfs` and `mount`: lists of options.
    """

    type: FilesystemType
    device: DeviceName | None = None
    make: bool = True
    mkfs: TupleOf[PrintableText] = ()
    mount: TupleOf[PrintableText] = ()


class File(Model):
    """A file on a filesystem: sparse, allocated with fallocate, or completely written with zeroes."""

    path: FilePath
    size: Size
    allocate: Allocation = "written"


class Loop(Model):
    """A loop device on a file or on another device.

    `backing` is `NAME/FILE` on the filesystem NAME, or the name of a device. If no filesystem NAME is declared,
    `filesystem` is made on the device NAME (a new one for tmpfs); if no such file is declared, one of `size` is made.
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
        """Name of the filesystem with the backing file, or of the backing device."""
        return self.backing.partition("/")[0]

    @property
    def file(self) -> str:
        """Name of the backing file on the filesystem; empty on a device."""
        return self.backing.partition("/")[2]


class Swap(Model):
    """Swap on a device or on a file; if the file is not declared, one of `size` is made."""

    on: DeviceOrFile
    size: Size | None = None
    priority: Annotated[int, Field(ge=0, le=32767)] | None = None


class Dm(Model):
    """A device-mapper device: `linear` joins devices, `crypt` encrypts one device with a key of its own."""

    type: Literal["linear", "crypt"]
    on: Annotated[TupleOf[DeviceName], Field(min_length=1, max_length=16)]


class Md(Model):
    """A software RAID array (md) without metadata."""

    level: Literal["raid0", "raid1"]
    on: Annotated[TupleOf[DeviceName], Field(min_length=2, max_length=16)]
