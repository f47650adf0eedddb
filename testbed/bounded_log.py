"""A log that a guest makes grow: its first part is kept, and it says where it was cut."""

from __future__ import annotations

from pathlib import Path

_MOST_BYTES = 64 << 20


class BoundedLog:
    """Text is added to a file until that is full."""

    def __init__(self, path: Path, most_bytes: int = _MOST_BYTES) -> None:
        self._path, self._room_bytes = path, most_bytes

    def add(self, text: str) -> None:
        """Add whole lines, as long as there is room."""
        if self._room_bytes <= 0:
            return
        self._room_bytes -= len(text.encode(errors="replace"))
        with self._path.open("a", errors="replace") as file:
            file.write(text if self._room_bytes > 0 else f"[testbed: the log is full, the rest is left out: {self._path.name}]\n")
