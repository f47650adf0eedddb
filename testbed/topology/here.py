"""What a topology needs of this host and of what ships with the testbed: memory, and the kernels and images that it names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from testbed.errors import UsageError
from testbed.hardware import disk_images
from testbed.hardware.disk_images import HEAD_BYTES, TAIL_BYTES, Content
from testbed.host import paths
from testbed.store.kernels.table import load_table
from testbed.topology.check import Mistake, did_you_mean, fits_host
from testbed.topology.disks import IMAGE, Disk, Nvme
from testbed.topology.graph import Path as Place
from testbed.topology.model import Topology
from testbed.units import format_size

# Every filesystem that the testbed's own files may lie on has files of this size.
_ANY_FILE_BYTES = 1 << 40


def host_mistakes(topology: Topology, memory_bytes: int) -> Iterator[Mistake]:
    """Everything of a topology that this host cannot give. `memory_bytes`: what it has."""
    yield from fits_host(topology, memory_bytes)
    images = paths.shipped("images")
    there = paths.image_names(images)
    for name, guest in topology.guests.items():
        if guest.image not in there:
            yield (
                ("guests", name, "image"),
                f"expected an image of images/, got {guest.image!r}{did_you_mean(guest.image, there)}",
            )
        if guest.kernel is not None:
            try:
                load_table(images / "kernels.yaml").resolve(guest.kernel)
            except UsageError as error:
                yield ("guests", name, "kernel"), str(error)
        for disk_name, disk in guest.disks.items():
            where: Place = ("guests", name, "disks", disk_name)
            for place, size_bytes in _raw_files(disk):
                if (why := _too_large(size_bytes, paths.cache_folder())) is not None:
                    yield (
                        (*where, *place, "size"),
                        f"expected a size that a file of this machine can have, got {format_size(size_bytes)}: {why}",
                    )
            if disk.image is not None:
                said_by = "image-format" if disk.image_format is not None else "its name"
                for message in image_mistakes(Path(disk.image), disk.image_kind, said_by, disk.size):
                    yield ("guests", name, "disks", disk_name, "image"), message


def _raw_files(disk: Disk) -> Iterator[tuple[Place, int]]:
    """The sizes in bytes of a disk's sparse files, each with the place of what is kept in it."""
    if disk.format == "raw" and disk.image is None:
        yield (), disk.size
        for name, namespace in disk.namespaces.items() if isinstance(disk, Nvme) else ():
            yield ("namespaces", name), namespace.size


def _too_large(size_bytes: int, folder: Path) -> str | None:
    """Why no file in a folder, which may not be there yet, can be so large; None where one can, or that cannot be tried. Leaves nothing."""
    if size_bytes <= _ANY_FILE_BYTES:
        return None
    there = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.is_dir())
    try:
        descriptor = os.open(there, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # not ours, or a filesystem without files that have no name
        return None
    try:
        os.ftruncate(descriptor, size_bytes)
        return None
    except OSError as error:
        return error.strerror
    finally:
        os.close(descriptor)


def image_mistakes(path: Path, kind: str, said_by: str, disk_bytes: int) -> Iterator[str]:
    """Why a disk of `disk_bytes` cannot be an overlay of an image of this `kind`, which `said_by` says, in words."""
    try:
        real = path.resolve()
        if not real.is_file():
            yield f"expected a file, {real} is none" if real.exists() else f"expected a file, there is no {path}"
        elif not re.search(IMAGE, real.name):
            yield f"expected an image of a disk or a file system, got a link to {real}"
        else:
            yield from disk_images.image_mistakes(_content(real), kind, said_by, disk_bytes)
    except (OSError, RuntimeError, ValueError) as error:  # a link that leads to itself, or a name that no file has
        yield f"{path}: cannot be read: {error.strerror if isinstance(error, OSError) else error}"


def _content(path: Path) -> Content:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - TAIL_BYTES))
        return Content(head=head, tail=file.read(TAIL_BYTES), size_bytes=size_bytes)
