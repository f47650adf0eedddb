"""Checks the image file below a disk's overlay."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from testbed.hardware import disk_images
from testbed.hardware.disk_images import HEAD_BYTES, TAIL_BYTES, Content
from testbed.topology.disks import IMAGE


def image_mistakes(path: Path, kind: str, said_by: str, disk_bytes: int) -> Iterator[str]:
    """Find out why a disk of `disk_bytes` cannot be an overlay of an image file.

    `kind`: the format that the image must have; `said_by`: the key (or the file's name) that says so, for messages.
    """
    try:
        real = path.resolve()
        if not real.is_file():
            yield f"expected a file, {real} is none" if real.exists() else f"expected a file, there is no {path}"
        elif not re.search(IMAGE, real.name):
            yield f"expected an image of a disk or a file system, got a link to {real}"
        else:
            yield from disk_images.image_mistakes(_read_content(real), kind, said_by, disk_bytes)
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, or a path that no file can have
        yield f"{path}: cannot be read: {error.strerror if isinstance(error, OSError) else error}"


def _read_content(path: Path) -> Content:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - TAIL_BYTES))
        return Content(head=head, tail=file.read(TAIL_BYTES), size_bytes=size_bytes)
