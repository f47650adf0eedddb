"""What a topology file says, as frozen values. Keys are QEMU's and the kernel's own words; the JSON Schema comes from these classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from testbed.hardware.profiles import Throttle
from testbed.units import GIB, parse_size


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=_kebab, populate_by_name=True)


_SIZE_SCHEMA: dict[str, Any] = {
    "oneOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\d+\s*[KMGT]?(i?B)?$"}],
    "description": "bytes, or a number with K, M, G or T (powers of 1024)",
}
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0), WithJsonSchema(_SIZE_SCHEMA)]
Rate = Annotated[int, BeforeValidator(parse_size), Field(ge=0), WithJsonSchema(_SIZE_SCHEMA)]
# A disk's serial is this name with "tb-" before it, and serials hold 20 characters.
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,15}$")]


class Limits(_Model):
    """Limits of a throttle group, in QEMU's words; absent or 0 is unlimited."""

    iops_total: Rate = 0
    iops_read: Rate = 0
    iops_write: Rate = 0
    bps_total: Rate = 0
    bps_read: Rate = 0
    bps_write: Rate = 0
    iops_size: Rate = 0

    def throttle(self) -> Throttle:
        return Throttle(**self.model_dump())


class Disk(_Model):
    """An emulated disk, empty, hot-plugged when the guest is up."""

    type: Literal["virtio-blk", "nvme"]
    size: Size
    profile: str | None = None
    throttle: Limits | None = None


class Loop(_Model):
    """A loop device on a file.

    `backing` is `NAME/FILE`: NAME is a disk or another loop, on which `filesystem` is made to hold FILE; with `filesystem: tmpfs` NAME is
    a new tmpfs. `size` is the file's, and so the loop's.
    """

    backing: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,15}/[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    filesystem: Literal["ext4", "xfs", "btrfs", "tmpfs"] = "ext4"
    size: Size
    direct_io: bool = False

    @property
    def holder(self) -> str:
        """Name of the disk, loop or tmpfs that holds the backing file."""
        return self.backing.partition("/")[0]

    @property
    def file(self) -> str:
        return self.backing.partition("/")[2]


class Guest(_Model):
    """One virtual machine."""

    kernel: str | None = None
    cpus: Annotated[int, Field(ge=1, le=16)] = 2
    memory: Size = GIB
    disks: dict[Name, Disk] = {}
    loops: dict[Name, Loop] = {}


class Topology(_Model):
    """A whole file."""

    version: Literal[1]
    guests: Annotated[dict[Name, Guest], Field(min_length=1)]
