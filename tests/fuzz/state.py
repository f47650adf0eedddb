"""Shares a fuzzing process's current input with its parent, by mapped memory."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_HEAD = struct.Struct("<QQ")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class State:
    """The file `state` of a folder: the number of inputs that were begun, and the last one."""

    _memory: mmap.mmap

    @classmethod
    def of(cls, folder: Path) -> State:
        """Open the state of a process's folder; create a missing one."""
        path = folder / "state"
        if not path.exists():
            path.write_bytes(bytes(_HEAD.size + _MOST_BYTES))
        with path.open("r+b") as file:
            return cls(mmap.mmap(file.fileno(), 0))

    def begin(self, number: int, data: bytes) -> None:
        kept = data[:_MOST_BYTES]
        self._memory[_HEAD.size : _HEAD.size + len(kept)] = kept
        self._memory[: _HEAD.size] = _HEAD.pack(number, len(kept))

    @property
    def number(self) -> int:
        return int(_HEAD.unpack_from(self._memory)[0])

    @property
    def data(self) -> bytes:
        size = _HEAD.unpack_from(self._memory)[1]
        return bytes(self._memory[_HEAD.size : _HEAD.size + size])
