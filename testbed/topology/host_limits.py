"""Checks what a topology needs of this host: memory, disk space, and the kernels and images that it names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UsageError
from testbed.host import paths, resources
from testbed.store.kernels.table import KernelTable, shipped_table
from testbed.topology import image_files
from testbed.topology.base import KeyPath
from testbed.topology.check import Mistake, did_you_mean
from testbed.topology.disks import Disk, Nvme
from testbed.topology.model import Topology
from testbed.units import format_size

# Every filesystem that can hold the testbed's own files supports files of this size.
_ANY_FILE_BYTES = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """What a host offers to guests. `memory_bytes`: for all of them; `disk_folder`: where the files of their
    disks are made.
    """

    memory_bytes: int
    kernels: KernelTable
    images: tuple[str, ...]
    disk_folder: Path

    @classmethod
    def of_this_host(cls) -> HostLimits:
        """Read the limits of the machine that this process runs on.

        :raise HostError: the table of kernels is damaged.
        """
        shipped = paths.shipped("images")
        return cls(
            memory_bytes=resources.memory_bytes(),
            kernels=shipped_table(),
            images=paths.image_names(shipped),
            disk_folder=paths.cache_folder(),
        )


def host_mistakes(topology: Topology, limits: HostLimits) -> Iterator[Mistake]:
    """List everything in a topology that the host cannot provide."""
    yield from _memory_mistakes(topology, limits.memory_bytes)
    for name, guest in topology.guests.items():
        if guest.image not in limits.images:
            yield (
                ("guests", name, "image"),
                f"expected an image of images/, got {guest.image!r}{did_you_mean(guest.image, limits.images)}",
            )
        if guest.kernel is not None:
            try:
                limits.kernels.resolve(guest.kernel)
            except UsageError as error:
                yield ("guests", name, "kernel"), str(error)
        for disk_name, disk in guest.disks.items():
            for path, message in _disk_mistakes(disk, limits.disk_folder):
                yield ("guests", name, "disks", disk_name, *path), message


def _memory_mistakes(topology: Topology, memory_bytes: int) -> Iterator[Mistake]:
    """Report guests that need more memory than the host has, each alone or all together."""
    available, together = format_size(memory_bytes), 0
    for name, guest in topology.guests.items():
        where: KeyPath = ("guests", name, "memory")
        together += guest.memory
        if guest.memory >= memory_bytes:
            yield where, f"expected less than this host's memory of {available}, got {format_size(guest.memory)}"
        elif together >= memory_bytes:
            yield (
                where,
                f"expected less than this host's memory of {available} for all guests, "
                f"got {format_size(together)} up to this one",
            )
            break


def _disk_mistakes(disk: Disk, folder: Path) -> Iterator[Mistake]:
    for place, size_bytes in _raw_files(disk):
        if (why := _why_too_large(size_bytes, folder)) is not None:
            yield (
                (*place, "size"),
                f"expected a size that a file of this machine can have, got {format_size(size_bytes)}: {why}",
            )
    if disk.image is not None:
        said_by = "image-format" if disk.image_format is not None else "its name"
        for message in image_files.image_mistakes(Path(disk.image), disk.image_kind, said_by, disk.size):
            yield ("image",), message


def _raw_files(disk: Disk) -> Iterator[tuple[KeyPath, int]]:
    """List the sparse files of a disk: the place of each in the disk's keys, and its size in bytes."""
    if disk.format == "raw" and disk.image is None:
        yield (), disk.size
        for name, namespace in disk.namespaces.items() if isinstance(disk, Nvme) else ():
            yield ("namespaces", name), namespace.size


def _why_too_large(size_bytes: int, folder: Path) -> str | None:
    """Return the error of making a file of this size in a folder, or None where that works or cannot be tried.

    The folder need not exist yet. The file that is made to find out has no name, and is gone afterwards.
    """
    if size_bytes <= _ANY_FILE_BYTES:
        return None
    existing = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.is_dir())
    try:
        descriptor = os.open(existing, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # no permission, or a filesystem without O_TMPFILE
        return None
    try:
        os.ftruncate(descriptor, size_bytes)
        return None
    except OSError as error:
        return error.strerror
    finally:
        os.close(descriptor)
