"""The files that emulated disks are kept in: made before QEMU opens them, in the folder of the guest that they belong to."""

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


async def make_disk_files(wanted: Storage) -> None:
    """Make an empty sparse file, an empty qcow2, or an overlay of an image, which stays as it is.

    :raise HostError: qemu-img is not there or fails; the image is missing, or larger than the disk.
    """
    if wanted.format == "raw":
        with _created(wanted.file) as file:
            try:
                file.truncate(wanted.size_bytes)
            except OSError as error:
                size = format_size(wanted.size_bytes)
                raise HostError(
                    f"{wanted.file}: cannot be {size} large on this machine: {error.strerror}; give the disk less"
                ) from error
        return
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError(
            f"{wanted.file.name}: qcow2 files are made by qemu-img, which is not installed; install qemu-utils"
        )
    # -u: it does not open the image, which may be a stranger's, and would do so as us.
    words: list[str | Path] = [program, "create", "-q", "-u", "-f", "qcow2"]
    if wanted.image is not None:
        path, kind = wanted.image
        # The format is named: guessing it would let a raw image's content name other files of this machine.
        if wrong := next(image_mistakes(path, kind, "the topology", wanted.size_bytes), None):
            raise HostError(f"image {path}: {wrong}")
        words += ["-b", path.resolve(), "-F", kind]
    with _created(wanted.file) as file:
        # By what is open: qemu-img would follow a link.
        await process.run(
            [*words, f"/proc/{os.getpid()}/fd/{file.fileno()}", str(wanted.size_bytes)], timeout_s=_LIMIT_S
        )


def check_kept_disks(store: Storage) -> None:
    """That a disk's file which a QEMU has written to, and which another one is about to open, names no other file of this machine.

    :raise HostError: it does, which no QEMU writes of itself, or it cannot be read.
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
            f"{store.file}: expected a disk that stands alone, got one whose data is in another file, as no QEMU makes it here"
        )


def _created(path: Path) -> BinaryIO:
    """An empty file, in a folder that is QEMU's as well."""
    try:
        return paths.create_file(path)
    except OSError as error:
        raise HostError(f"{path}: cannot be made: {error.strerror}") from error
