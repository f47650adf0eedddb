"""How much of this machine's disks a run and the cache may take, and whether there is any left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from testbed.errors import UsageError
from testbed.host import untrusted_files
from testbed.units import GIB, MIB, format_size, parse_size

RUN_LIMIT, CACHE_LIMIT = "TESTBED_RUN_LIMIT", "TESTBED_CACHE_LIMIT"
_DEFAULT_BYTES = 20 * GIB
# Less is nothing: a file system keeps some for itself.
_LEAST_BYTES = MIB
# Left free beside what is written at once and is large: guests go on, and write, too.
MARGIN_BYTES = 256 * MIB
_POLL_S = 2.0


def size_limit(variable: str) -> int:
    """What the user allows, in bytes; 20G where nothing is said.

    :raise UsageError: it is no size.
    """
    said = os.environ.get(variable)
    if not said:
        return _DEFAULT_BYTES
    try:
        return parse_size(said)
    except ValueError as error:
        raise UsageError(f"{variable}={said}: {error}") from error


def full_disk_message(places: Iterable[Path]) -> str | None:
    """Which of these folders is on a disk that takes no more, in words; None where there is room in all."""
    for place in places:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free < _LEAST_BYTES:
                return f"{place}: this machine's disk is full; make room there, or name another place with TESTBED_CACHE or TESTBED_STATE"
    return None


def bytes_taken(folder: Path) -> int:
    """Bytes of disk that a folder takes, holes left out."""
    total = 0
    for path in untrusted_files.walk(folder):
        with contextlib.suppress(OSError):
            there = path.lstat()
            total += 0 if stat.S_ISDIR(there.st_mode) else there.st_blocks * 512
    return total


class Quota:
    """What all guests of a run may take together of this machine's disks: their logs, and what they write to their own.

    `sharing`: how many guests that stay share the limit, each in a process of its own that knows nothing of the others' disks; this is for
    one of them, with an equal part.
    """

    def __init__(self, limit_bytes: int, *, sharing: int = 1) -> None:
        self._limit_bytes = limit_bytes // sharing
        self._shared = f", its part of {format_size(limit_bytes)} for {sharing} guests" if sharing > 1 else ""
        self._folders: set[Path] = set()
        self._taken_bytes, self._measured = 0, -_POLL_S

    async def exceeded(self, folders: Iterable[Path]) -> str:
        """Count these folders as well, wait until all that were named take more than is allowed, and say so."""
        self._folders.update(folders)
        while self._taken() <= self._limit_bytes:
            await asyncio.sleep(_POLL_S)
        return (
            f"its run takes {format_size(self._taken_bytes)} of this machine's disks, and may take {format_size(self._limit_bytes)}"
            f"{self._shared}; allow more with {RUN_LIMIT}"
        )

    def _taken(self) -> int:
        now = time.monotonic()
        if now >= self._measured + _POLL_S / 2:
            self._folders = {folder for folder in self._folders if folder.exists()}  # a guest's own go with it
            self._taken_bytes, self._measured = sum(bytes_taken(folder) for folder in self._folders), now
        return self._taken_bytes
