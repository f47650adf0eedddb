"""Limits how much of this machine's disks a run and the cache may take, and tells whether a disk is full."""

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
# Less free space counts as full: a filesystem keeps some for itself.
_LEAST_BYTES = MIB
# Kept free when something large is written at once: guests go on writing meanwhile.
MARGIN_BYTES = 256 * MIB
_POLL_S = 2.0


def size_limit(variable: str) -> int:
    """Return the limit that an environment variable sets, in bytes; 20G if it is not set.

    :raise UsageError: it is not a size.
    """
    value = os.environ.get(variable)
    if not value:
        return _DEFAULT_BYTES
    try:
        return parse_size(value)
    except ValueError as error:
        raise UsageError(f"{variable}={value}: {error}") from error


def full_disk_message(places: Iterable[Path]) -> str | None:
    """Tell which of these folders is on a full disk; None if none is."""
    for place in places:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free < _LEAST_BYTES:
                return (
                    f"{place}: this machine's disk is full; make room there, or name another place with TESTBED_CACHE "
                    "or TESTBED_STATE"
                )
    return None


def bytes_taken(folder: Path) -> int:
    """Return the bytes of disk that a folder takes, without holes."""
    total = 0
    for path in untrusted_files.walk(folder):
        with contextlib.suppress(OSError):
            status = path.lstat()
            total += 0 if stat.S_ISDIR(status.st_mode) else status.st_blocks * 512
    return total


class Quota:
    """The limit of what all guests of a run may take together of this machine's disks: logs, and what they write to
    their own disks.

    `sharing`: the number of long-lived guests that share the limit equally. Each is in a process of its own that does
    not see the others' disks; this quota is for one of them.
    """

    def __init__(self, limit_bytes: int, *, sharing: int = 1) -> None:
        self._limit_bytes = limit_bytes // sharing
        self._shared = f", its part of {format_size(limit_bytes)} for {sharing} guests" if sharing > 1 else ""
        self._folders: set[Path] = set()
        self._taken_bytes, self._measured = 0, -_POLL_S

    async def exceeded(self, folders: Iterable[Path]) -> str:
        """Add these folders to the count, wait until all folders together exceed the limit, and return the message."""
        self._folders.update(folders)
        while self._taken() <= self._limit_bytes:
            await asyncio.sleep(_POLL_S)
        return (
            f"its run takes {format_size(self._taken_bytes)} of this machine's disks, and may take "
            f"{format_size(self._limit_bytes)}{self._shared}; allow more with {RUN_LIMIT}"
        )

    def _taken(self) -> int:
        now = time.monotonic()
        if now >= self._measured + _POLL_S / 2:
            self._folders = {folder for folder in self._folders if folder.exists()}  # a guest's are removed with it
            self._taken_bytes, self._measured = sum(bytes_taken(folder) for folder in self._folders), now
        return self._taken_bytes
