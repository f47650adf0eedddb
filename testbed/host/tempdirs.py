"""Folders that whoever fills them holds (flock): what a killed one has left is known by being free, and removed by the next command.

A folder has its name as soon as it is held and not before, so that nobody takes it for a leftover in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import filelock

from testbed.host import untrusted_files

_TEMPORARY = "testbed-tmp-"
# The end of a name that is not held yet: of no more than a moment, unless its maker was killed in it.
_NEW, _MOMENT_S = ".new", 60.0


@contextlib.contextmanager
def create(path: Path) -> Iterator[Path]:
    """A new folder, held until it is left. It stays, unless whoever fills it has moved it away, or there was an error.

    :raise OSError: it cannot be made.
    """
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_NEW}")
    new.mkdir(mode=0o700, parents=True)
    held = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        new.rename(path)
        yield path
    except BaseException:
        for folder in (new, path):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(held)


def sweep(found: Iterable[Path]) -> tuple[Path, ...]:
    """Remove those of these folders that nobody holds, which killed ones have left; returns them."""
    gone = []
    for leftover in found:
        with contextlib.suppress(OSError):
            held = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                at = os.fstat(held)
                if at.st_uid != os.geteuid() or (
                    leftover.name.endswith(_NEW) and time.time() - at.st_mtime < _MOMENT_S
                ):
                    continue
                untrusted_files.remove_folder(leftover)
                gone.append(leftover)
            finally:
                os.close(held)
    return tuple(gone)


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder among this machine's temporary files, gone when it is left.

    :raise OSError: it cannot be made.
    """
    with create(Path(tempfile.gettempdir()) / f"{_TEMPORARY}{secrets.token_hex(4)}") as folder:
        try:
            yield folder
        finally:
            untrusted_files.remove_folder(folder)


def sweep_temporary() -> tuple[Path, ...]:
    """Remove the temporary folders that killed commands have left; returns them."""
    return sweep(Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"))


def lock_file(path: Path) -> filelock.FileLock:
    """A lock that only this user's processes can take, since nobody else can open its file; another process that holds it is told apart by
    the kernel, which frees it when that ends.
    """
    return filelock.FileLock(path, mode=0o600, thread_local=False)
