"""Creates and checks the files that hold emulated disks, in the folder of the guest that they belong to, before QEMU
opens them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from testbed.errors import HostError
from testbed.hardware import disk_images
from testbed.hardware.disk_images import HEAD_BYTES
from testbed.host import paths, process
from testbed.qemu.blockdev import Storage
from testbed.topology.image_files import image_mistakes
from testbed.units import format_size

_LIMIT_S = 60


async def make_disk_files(storage: Storage) -> None:
    """Create an empty sparse file, an empty qcow2, or a qcow2 overlay of an image, which is not changed.

    :raise HostError: qemu-img is missing or fails; the image is missing, or larger than the disk.
    """
    if storage.format == "raw":
        with _create(storage.file) as file:
            try:
                file.truncate(storage.size_bytes)
            except OSError as error:
                size = format_size(storage.size_bytes)
                raise HostError(
                    f"{storage.file}: cannot be {size} large on this machine: {error.strerror}; give the disk less"
                ) from error
        return
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError(
            f"{storage.file.name}: qcow2 files are made by qemu-img, which is not installed; install qemu-utils"
        )
    # -u: qemu-img must not open the image, which may be a stranger's, with our privileges.
    argv: list[str | Path] = [program, "create", "-q", "-u", "-f", "qcow2"]
    if storage.image is not None:
        path, kind = storage.image
        # The format is given: if QEMU guessed it, a raw image's content could name other files of this machine.
        if wrong := next(image_mistakes(path, kind, "the topology", storage.size_bytes), None):
            raise HostError(f"image {path}: {wrong}")
        argv += ["-b", path.resolve(), "-F", kind]
    with _create(storage.file) as file:
        # By its open descriptor: qemu-img would follow a link.
        await process.run(
            [*argv, f"/proc/{os.getpid()}/fd/{file.fileno()}", str(storage.size_bytes)], timeout_s=_LIMIT_S
        )


def check_kept_disks(store: Storage) -> None:
    """Check that a disk's file which one QEMU has written, and another is about to open, refers to no other file of
    this machine.

    :raise HostError: it does, which QEMU never writes by itself, or it cannot be read.
    """
    if store.format != "qcow2":
        return
    try:
        with paths.open_file(store.file) as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise HostError(f"{store.file}: cannot be read: {error.strerror}") from error
    if disk_images.external_data(head):
        raise HostError(
            f"{store.file}: expected a disk that stands alone, got one whose data is in another file, as no QEMU makes "
            "it here"
        )


def _create(path: Path) -> BinaryIO:
    """Create an empty file in a folder that QEMU can write to as well."""
    try:
        return paths.create_file(path)
    except OSError as error:
        raise HostError(f"{path}: cannot be made: {error.strerror}") from error
