"""Files that are added to while a guest lives. A disk that takes no more must not end what waits for the guest without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Hears why something cannot be written.
OnFailure = Callable[[str], None]


class Log:
    """One such file. `on_failure` hears of the first line that cannot be written; later ones are dropped."""

    def __init__(self, path: Path, on_failure: OnFailure) -> None:
        self.path = path
        self._on_failure = on_failure
        self._failed = False

    def add(self, text: str) -> None:
        """Add a text as it is."""
        if self._failed:
            return
        try:
            with self.path.open("a") as file:
                file.write(text)
        except OSError as error:
            self._failed = True
            self._on_failure(unwritable(self.path, error))

    def note(self, record: dict[str, Any]) -> None:
        """Add a line of JSON."""
        self.add(json.dumps(record) + "\n")


def unwritable(path: Path, error: OSError) -> str:
    """What is said of a file that cannot be written."""
    return f"{path}: cannot be written: {error.strerror}; make room there, or name another place with TESTBED_STATE"
