"""Where the blocks of an exported device are kept: in a file, or nowhere; and a volatile cache over it, which a power
cut empties.
"""

from __future__ import annotations

import ctypes
import os
import random
from typing import Protocol

_BLOCK = 4096
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Backing(Protocol):
    """Bytes at offsets; the caller keeps within `size`. Every call may raise OSError."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Read that many bytes."""

    def write(self, offset: int, data: bytes) -> None:
        """Accept these bytes; they may be lost until `flush`."""

    def trim(self, offset: int, length: int) -> None:
        """Make these bytes zeros, and free their space."""

    def flush(self) -> None:
        """Make everything accepted so far durable."""


class DiscardingBacking:
    """Drops everything that is written, and reads as zeros."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        del offset
        return bytes(length)

    def write(self, offset: int, data: bytes) -> None:
        del offset, data

    def trim(self, offset: int, length: int) -> None:
        del offset, length

    def flush(self) -> None:
        pass


class FileBacking:
    """An open file, through the same page cache as QEMU's own view of it.

    The host does not lose power, so `flush` has nothing to do, as with QEMU's `cache.no-flush`. `room_bytes`: the size
    that the file may grow to; the device has this size from the beginning, because NBD cannot announce growth.
    """

    def __init__(self, descriptor: int, *, room_bytes: int = 0) -> None:
        self._file = descriptor
        self.size = max(os.fstat(descriptor).st_size, room_bytes)

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file, length, offset)
        while len(data) < length:
            more = os.pread(self._file, length - len(data), offset + len(data))
            data += more or bytes(length - len(data))  # beyond the end of a file that may still grow
        return data

    def write(self, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, memoryview(data)[done:], offset + done)

    def trim(self, offset: int, length: int) -> None:
        if _libc.fallocate(self._file, _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")

    def flush(self) -> None:
        pass


class VolatileCache:
    """Blocks of 4 KiB that the backing does not have yet. A flush writes them out; a full cache writes out the oldest.

    `lies`: a flush is acknowledged and does nothing.
    """

    def __init__(self, below: Backing, *, room_bytes: int, lies: bool) -> None:
        self._below = below
        self._most_blocks = max(1, room_bytes // _BLOCK)
        self.lies = lies
        # By number of the block, in the order in which they became dirty; None is a block of zeros that takes no
        # memory.
        self._dirty: dict[int, bytes | None] = {}

    @property
    def size(self) -> int:
        """The size of the backing, in bytes."""
        return self._below.size

    def read(self, offset: int, length: int) -> bytes:
        data = self._below.read(offset, length)
        if not self._dirty:
            return data
        result = bytearray(data)
        for number in range(offset // _BLOCK, (offset + length - 1) // _BLOCK + 1):
            if number in self._dirty:
                block = self._dirty[number] or bytes(_BLOCK)
                at = number * _BLOCK - offset
                first, last = max(0, -at), min(_BLOCK, length - at)
                result[at + first : at + last] = block[first:last]
        return bytes(result)

    def write(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, skip = divmod(offset + at, _BLOCK)
            part = data[at : at + _BLOCK - skip]
            if len(part) < _BLOCK:
                old = self.read(number * _BLOCK, _BLOCK)
                part = old[:skip] + part + old[skip + len(part) :]
            self._put(number, part)
            at += _BLOCK - skip

    def trim(self, offset: int, length: int) -> None:
        """Trim whole blocks in the cache, as many as it has room for; the first part of a larger range is trimmed in
        the backing at once.
        """
        first, end = -(-offset // _BLOCK), (offset + length) // _BLOCK
        if first >= end:  # no whole block
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(first * _BLOCK - offset))
        first_kept = max(first, end - self._most_blocks)
        if first_kept > first:
            for number in [number for number in self._dirty if first <= number < first_kept]:
                del self._dirty[number]
            self._below.trim(first * _BLOCK, (first_kept - first) * _BLOCK)
        for number in range(first_kept, end):
            self._put(number, None)
        self.write(end * _BLOCK, bytes(offset + length - end * _BLOCK))

    def flush(self) -> None:
        if not self.lies:
            self.settle(1.0)
            self._below.flush()

    def settle(self, share: float, seed: int = 0) -> int:
        """Empty the cache: each dirty block is written with the probability `share`, or lost; returns how many were
        lost.
        """
        chance = random.Random(seed)  # noqa: S311  # the same seed must lose the same blocks
        lost = 0
        for number in tuple(self._dirty):
            if share >= 1.0 or chance.random() < share:
                self._write_out(number)
            else:
                del self._dirty[number]
                lost += 1
        return lost

    def _put(self, number: int, block: bytes | None) -> None:
        self._dirty[number] = block
        if len(self._dirty) > self._most_blocks:
            self._write_out(next(iter(self._dirty)))

    def _write_out(self, number: int) -> None:
        block, offset = self._dirty.pop(number), number * _BLOCK
        length = min(_BLOCK, self._below.size - offset)  # the last one may be cut
        if block is None:
            self._below.trim(offset, length)
        else:
            self._below.write(offset, block[:length])
