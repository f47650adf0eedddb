"""Append-only log files. A full disk is reported to a callback instead of raising where a line is logged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.errors import HostError

# Called with the reason why a file cannot be written.
OnFailure = Callable[[str], None]
_MOST_BYTES = 64 << 20


class Log:
    """One log file.

    Only the first part of a long log is kept, and its last line says where it was cut. `on_failure`: called for the
    first text that cannot be written; later ones are dropped.
    """

    def __init__(self, path: Path, on_failure: OnFailure, most_bytes: int = _MOST_BYTES) -> None:
        self.path = path
        self._on_failure = on_failure
        self._room_bytes = most_bytes
        self._ended = False

    def add(self, text: str) -> None:
        """Append whole lines, as long as the file may grow."""
        if self._ended:
            return
        self._room_bytes -= len(text.encode(errors="replace"))
        if self._room_bytes <= 0:
            self._ended, text = True, f"[testbed: the log is full, the rest is left out: {self.path.name}]\n"
        try:
            with self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError as error:
            self._ended = True
            self._on_failure(write_error(self.path, error))

    def note(self, record: dict[str, Any]) -> None:
        """Append a line of JSON."""
        self.add(json.dumps(record) + "\n")


def write_log(path: Path, text: str) -> None:
    """Write a text file.

    :raise HostError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(write_error(path, error)) from error


def write_error(path: Path, error: OSError) -> str:
    """Return the message for a file that cannot be written."""
    return f"{path}: cannot be written: {error.strerror}; make room there, or name another place with TESTBED_STATE"


def tail(path: Path, most_bytes: int = 4096) -> str:
    """Return the end of a file that a program has written, which may be of any size.

    :raise OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
        return file.read(most_bytes).decode(errors="replace").strip()
