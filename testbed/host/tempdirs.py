"""Folders that are locked (flock) by the process that made them.

An unlocked one was left by a killed process, and the next command removes it.

A folder gets its name only once it is locked, so that no other process takes it for a leftover.
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
# The end of a folder's name before it is locked, which takes a moment, unless its maker was killed meanwhile.
_NEW, _MOMENT_S = ".new", 60.0


@contextlib.contextmanager
def create(path: Path) -> Iterator[Path]:
    """Make a new folder, locked until it is left.

    It stays there afterwards, unless it was moved away, or there was an error.

    :raise OSError: it cannot be made.
    """
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_NEW}")
    new.mkdir(mode=0o700, parents=True)
    descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        new.rename(path)
        yield path
    except BaseException:
        for folder in (new, path):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def sweep(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Remove the unlocked ones of these folders, which killed processes have left; returns them."""
    removed = []
    for leftover in folders:
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(descriptor)
                if status.st_uid != os.geteuid() or (
                    leftover.name.endswith(_NEW) and time.time() - status.st_mtime < _MOMENT_S
                ):
                    continue
                untrusted_files.remove_folder(leftover)
                removed.append(leftover)
            finally:
                os.close(descriptor)
    return tuple(removed)


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """Make a folder among this machine's temporary files, which is removed when it is left.

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
    """Return a lock that only this user's processes can take, since no other user can open its file.

    The kernel frees it when its holder ends.
    """
    return filelock.FileLock(path, mode=0o600, thread_local=False)
