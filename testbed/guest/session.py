"""What one testbed process owns: a folder of sockets and a folder of scratch disks, each with a lock file beside it.

RUNTIME/NAME/               sockets
        NAME.lock           locked while the session exists; contains the path of the cache with the other folder
CACHE/scratch/NAME/         scratch disks
              NAME.lock     the same, with the path of the runtime folder

The lock of a killed testbed is free. The next testbed that shares one of the two folders with it removes what it left
in both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.errors import HostError
from testbed.host import admission, registry, tempdirs
from testbed.host.paths import Folders
from testbed.host.registry import VmRecord
from testbed.store import cache, snapshot_files

_NAME, _LOCK = re.compile(r"[0-9a-f]{8}"), re.compile(r"[0-9a-f]{8}\.lock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The folders of one session; they are removed when it ends."""

    name: str
    sockets: Path
    scratch: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What was removed of killed commands: `sessions`, by name; `unfinished` entries of the cache, snapshots and
    temporary folders; and `guests` (VMs) whose supervisor is gone.
    """

    sessions: tuple[str, ...]
    unfinished: tuple[str, ...]
    guests: tuple[VmRecord, ...]

    def __len__(self) -> int:
        return len(self.sessions) + len(self.unfinished) + len(self.guests)


@contextlib.contextmanager
def open_session(folders: Folders) -> Iterator[Session]:
    """Open a session of this process; first removes what killed ones left.

    :raise HostError: its folders cannot be made.
    """
    reap(folders)
    with contextlib.ExitStack() as locks:
        name = _locked_name(folders, locks)
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
            shutil.rmtree(session.sockets, ignore_errors=True)
            shutil.rmtree(session.scratch, ignore_errors=True)


def _lock_file(place: Path, name: str) -> Path:
    return place / f"{name}.lock"


def _locked_name(folders: Folders, keep: contextlib.ExitStack) -> str:
    """Choose a new name and lock it in both folders, until `keep` is closed."""
    halves = ((folders.scratch, folders.runtime, "TESTBED_CACHE"), (folders.runtime, folders.cache, "XDG_RUNTIME_DIR"))
    while True:
        name = secrets.token_hex(4)
        with contextlib.ExitStack() as locks:
            for place, other, variable in halves:
                path = _lock_file(place, name)
                try:
                    # The mode keeps other users from opening it: their lock would make a dead session look alive.
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                    lock = locks.enter_context(os.fdopen(descriptor, "wb", buffering=0))
                    locks.callback(path.unlink, missing_ok=True)
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    lock.write(os.fsencode(other.absolute()))
                except (FileExistsError, BlockingIOError):
                    break
                except OSError as error:
                    raise HostError(
                        f"{path}: cannot be locked: {error.strerror}; name another place with {variable}"
                    ) from error
            else:
                # `reap` of another process may have removed a new file just before we locked it.
                if all(_lock_file(place, name).exists() for place, _, _ in halves):
                    keep.enter_context(locks.pop_all())
                    return name


def reap(folders: Folders) -> Reaped:
    """Remove what killed sessions left, and return what was removed.

    This includes unfinished entries of the cache, unfinished snapshots, temporary folders, and VMs whose supervisor is
    gone: in these folders, and in the folders that a killed session used together with one of these. A VM's record in
    another runtime folder stays: a command with that folder reports it.
    """
    guests: list[VmRecord] = []
    unfinished = [path.name for path in (*snapshot_files.remove_unfinished(folders.state), *tempdirs.sweep_temporary())]
    reaped: dict[str, None] = {}

    def sweep(of: Folders) -> None:
        unfinished.extend(path.name for path in cache.sweep(of.cache))
        guests.extend(registry.remove_dead(of, keep_records=of.runtime != folders.runtime))

    sweep(folders)
    admission.sweep(folders.admission)
    for here in (folders.scratch, folders.runtime):
        for path in sorted(here.glob("*.lock")):
            with _leftover(path) as content:
                if content is None or not _LOCK.fullmatch(path.name):
                    continue
                if content:  # empty: it was killed before it had folders
                    there = Path(os.fsdecode(content))
                    of = replace(folders, cache=there) if here == folders.runtime else replace(folders, runtime=there)
                    if of != folders and there.is_dir():
                        sweep(of)
                    _kill_guests(of.runtime / path.stem)
                    _remove_half(of.scratch if here == folders.runtime else of.runtime, path.stem)
                # Last: the lock file names the other folder, as long as it exists.
                _remove_half(here, path.stem)
            reaped[path.stem] = None
        # A session makes its folders after its lock files, and removes them before: a folder without a lock is a
        # leftover.
        for folder in here.iterdir():
            if _NAME.fullmatch(folder.name) and not _lock_file(here, folder.name).exists():
                _remove_half(here, folder.name)
                reaped[folder.name] = None
    return Reaped(sessions=tuple(reaped), unfinished=tuple(unfinished), guests=tuple(guests))


@contextlib.contextmanager
def _leftover(path: Path) -> Iterator[bytes | None]:
    """Lock the lock file of a dead session and yield its content; None if the session still runs."""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(path.open("rb"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = lock.read()
        except OSError:
            yield None
            return
        yield content


def _remove_half(place: Path, name: str) -> None:
    shutil.rmtree(place / name, ignore_errors=True)
    _lock_file(place, name).unlink(missing_ok=True)


# A variable in QEMU's environment: the folder of its guest's sockets.
OWNER_VARIABLE = "TESTBED_SOCKETS"


def _kill_guests(sockets: Path) -> None:
    """Kill QEMU processes whose sockets are in `sockets`, before their disks are removed.

    Normally their parent-death signal has ended them already.
    """
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if b"qemu-system" in argv and f"{OWNER_VARIABLE}={sockets}/".encode() in environment:
            with contextlib.suppress(OSError):
                os.kill(int(process.name), signal.SIGKILL)
