"""Files and folders for readers that take a path; in memory where `./tb fuzz` runs them."""

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
    """A file with these bytes, the same each time."""
    path = Path(_own().name) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder."""
    path = Path(_own().name) / "folder"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def text(data: bytes) -> str:
    """Bytes as what a file's reader or a guest's wire makes of them."""
    return data.decode(errors="replace")
