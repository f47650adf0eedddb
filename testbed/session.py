"""What one running testbed owns: a folder of sockets and one of scratch disks, held by a lock that dies with it.

What a killed testbed left is found by its lock being free, and removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from testbed import admission, vms
from testbed.errors import HostError
from testbed.paths import Folders
from testbed.store import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """`sockets` and `scratch` are removed when the session ends."""

    name: str
    sockets: Path
    scratch: Path


@contextlib.contextmanager
def open_session(folders: Folders) -> Iterator[Session]:
    """A session of this process; sweeps up after killed ones first.

    :raise HostError: its folders cannot be made.
    """
    reap(folders)
    name, lock = _locked_name(folders)
    session = Session(name=name, sockets=folders.runtime / name, scratch=folders.scratch / name)
    try:
        session.sockets.mkdir(mode=0o700)
        session.scratch.mkdir(mode=0o700)
        yield session
    except OSError as error:
        if error.filename in (str(session.sockets), str(session.scratch)):
            raise HostError(f"{error.filename}: cannot be made: {error.strerror}") from error
        raise
    finally:
        _remove(folders, name)
        lock.release()


def _lock_file(folders: Folders, name: str) -> Path:
    return folders.scratch / f"{name}.lock"


def _locked_name(folders: Folders) -> tuple[str, filelock.BaseFileLock]:
    while True:
        name = secrets.token_hex(4)
        path = _lock_file(folders, name)
        try:
            lock = filelock.FileLock(path, thread_local=False)
            lock.acquire(blocking=False)
        except filelock.Timeout:
            continue
        except OSError as error:
            raise HostError(f"{path}: cannot be locked: {error.strerror}; name another place with TESTBED_CACHE") from error
        # A reaper may have taken the new file for a leftover just before it was locked.
        if path.exists():
            return name, lock
        lock.release()


def reap(folders: Folders) -> tuple[str, ...]:
    """Remove what killed sessions left; returns their names. So goes what is half-finished in the cache, and guests that stayed and whose
    supervisor is gone.
    """
    cache.sweep(folders.cache)
    vms.every(folders)
    admission.sweep(folders.runtime)
    reaped = []
    for path in folders.scratch.glob("*.lock"):
        lock = filelock.FileLock(path, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except (filelock.Timeout, OSError):
            continue
        try:
            _kill_guests(folders.runtime / path.stem)
            _remove(folders, path.stem)
        finally:
            lock.release()
        reaped.append(path.stem)
    return tuple(reaped)


def _remove(folders: Folders, name: str) -> None:
    shutil.rmtree(folders.runtime / name, ignore_errors=True)
    shutil.rmtree(folders.scratch / name, ignore_errors=True)
    _lock_file(folders, name).unlink(missing_ok=True)


# A variable of QEMU's environment that says whose it is: its folder of sockets.
OWNER = "TESTBED_SOCKETS"


def _kill_guests(sockets: Path) -> None:
    """End QEMUs whose sockets are in `sockets`: there is one only if its testbed was killed before the parent-death signal was set."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if b"qemu-system" in words and f"{OWNER}={sockets}/".encode() in environment:
            with contextlib.suppress(OSError):
                os.kill(int(process.name), signal.SIGKILL)
