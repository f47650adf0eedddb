"""Makes files and folders for parsers that take a path; in memory under `./tb fuzz`."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@functools.cache
def _own() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="testbed-fuzz-")


def file(data: bytes, name: str = "input") -> Path:
    """Write the bytes to the same file each time."""
    path = Path(_own().name) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@contextmanager
def folder() -> Iterator[Path]:
    """Make an empty folder."""
    path = Path(_own().name) / "folder"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def text(data: bytes) -> str:
    """Decode bytes as a file reader or a guest's channel does."""
    return data.decode(errors="replace")
