"""Files that are added to while a guest or a run lives. A disk that takes no more must not end what waits for the guest without a word."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.errors import HostError

# Hears why something cannot be written.
OnFailure = Callable[[str], None]
_MOST_BYTES = 64 << 20


class Log:
    """One such file. What a guest makes grow keeps its first part, and says where it was cut. `on_failure` hears of the first text that
    cannot be written; later ones are dropped.
    """

    def __init__(self, path: Path, on_failure: OnFailure, most_bytes: int = _MOST_BYTES) -> None:
        self.path = path
        self._on_failure = on_failure
        self._room_bytes = most_bytes
        self._ended = False

    def add(self, text: str) -> None:
        """Add whole lines, as long as there is room."""
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
        """Add a line of JSON."""
        self.add(json.dumps(record) + "\n")


def write_text(path: Path, text: str) -> None:
    """A file that does not grow.

    :raise HostError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(write_error(path, error)) from error


def write_error(path: Path, error: OSError) -> str:
    """What is said of a file that cannot be written."""
    return f"{path}: cannot be written: {error.strerror}; make room there, or name another place with TESTBED_STATE"


def tail(path: Path, most_bytes: int = 4096) -> str:
    """The last text of a file that a program wrote, which may be of any size.

    :raise OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
        return file.read(most_bytes).decode(errors="replace").strip()
