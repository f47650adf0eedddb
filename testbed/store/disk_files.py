"""The files that emulated disks are kept in: made before QEMU opens them, in the folder of the guest that they belong to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from testbed import paths, process
from testbed.drives import Storage
from testbed.errors import HostError
from testbed.topology import here
from testbed.units import format_size

_LIMIT_S = 60


async def make(wanted: Storage) -> None:
    """Make an empty sparse file, an empty qcow2, or an overlay of an image, which stays as it is.

    :raise HostError: qemu-img is not there or fails; the image is missing, or larger than the disk.
    """
    if wanted.format == "raw":
        with _created(wanted.file) as file:
            try:
                file.truncate(wanted.size_bytes)
            except OSError as error:
                size = format_size(wanted.size_bytes)
                raise HostError(f"{wanted.file}: cannot be {size} large on this machine: {error.strerror}; give the disk less") from error
        return
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError(f"{wanted.file.name}: qcow2 files are made by qemu-img, which is not installed; install qemu-utils")
    words: list[str | Path] = [program, "create", "-q", "-f", "qcow2"]
    if wanted.image is not None:
        path, kind = wanted.image
        # The format is named: guessing it would let a raw image's content name other files of this machine.
        if wrong := next(here.image_mistakes(path, kind, "the topology", wanted.size_bytes), None):
            raise HostError(f"image {path}: {wrong}")
        words += ["-b", path.resolve(), "-F", kind]
    with _created(wanted.file) as file:
        # By what is open: qemu-img would follow a link.
        await process.run([*words, f"/proc/{os.getpid()}/fd/{file.fileno()}", str(wanted.size_bytes)], timeout_s=_LIMIT_S)


def _created(path: Path) -> BinaryIO:
    """An empty file, in a folder that is QEMU's as well."""
    try:
        return paths.created(path)
    except OSError as error:
        raise HostError(f"{path}: cannot be made: {error.strerror}") from error
