"""What one running testbed owns: a folder of sockets and one of scratch disks, each with a lock beside it that dies
with the session.

RUNTIME/NAME/               sockets
        NAME.lock           held while the session lives; says which cache the other half is in
CACHE/scratch/NAME/         scratch disks
              NAME.lock     the same, and says which runtime folder the other half is in

What a killed testbed left is found by its locks being free, and removed by the next one, wherever that has only one of
the two folders in common with it.
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
    """`sockets` and `scratch` are removed when the session ends."""

    name: str
    sockets: Path
    scratch: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What killed commands had left and is gone now: `sessions`, by their names; what was `unfinished` in the cache, of
    snapshots, or temporary; and `guests` that stayed, and whose supervisor is gone.
    """

    sessions: tuple[str, ...]
    unfinished: tuple[str, ...]
    guests: tuple[VmRecord, ...]

    def __len__(self) -> int:
        return len(self.sessions) + len(self.unfinished) + len(self.guests)


@contextlib.contextmanager
def open_session(folders: Folders) -> Iterator[Session]:
    """A session of this process; sweeps up after killed ones first.

    :raise HostError: its folders cannot be made.
    """
    reap(folders)
    with contextlib.ExitStack() as held:
        name = _locked_name(folders, held)
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


def _locked_name(folders: Folders, held: contextlib.ExitStack) -> str:
    halves = ((folders.scratch, folders.runtime, "TESTBED_CACHE"), (folders.runtime, folders.cache, "XDG_RUNTIME_DIR"))
    while True:
        name = secrets.token_hex(4)
        with contextlib.ExitStack() as locks:
            for place, other, variable in halves:
                path = _lock_file(place, name)
                try:
                    # Nobody else opens it, and keeps a dead session from being seen as one.
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
                # A reaper may have taken a new file for a leftover just before it was locked.
                if all(_lock_file(place, name).exists() for place, _, _ in halves):
                    held.enter_context(locks.pop_all())
                    return name


def reap(folders: Folders) -> Reaped:
    """Remove what killed sessions left; returns it.

    So goes what is half-finished in the cache and among snapshots, what is temporary, and guests that stayed and whose
    supervisor is gone: of these folders, and of those that a killed session had beside one of these.
    """
    guests: list[VmRecord] = []
    unfinished = [path.name for path in (*snapshot_files.remove_unfinished(folders.state), *tempdirs.sweep_temporary())]
    reaped: dict[str, None] = {}

    def sweep(of: Folders) -> None:
        unfinished.extend(path.name for path in cache.sweep(of.cache))
        guests.extend(registry.remove_dead(of))

    sweep(folders)
    admission.sweep(folders.admission)
    for here in (folders.scratch, folders.runtime):
        for path in sorted(here.glob("*.lock")):
            with _dead(path) as said:
                if said is None or not _LOCK.fullmatch(path.name):
                    continue
                if said:  # or it died before it had anything
                    there = Path(os.fsdecode(said))
                    of = replace(folders, cache=there) if here == folders.runtime else replace(folders, runtime=there)
                    if of != folders and there.is_dir():
                        sweep(of)
                    _kill_guests(of.runtime / path.stem)
                    _remove_half(of.scratch if here == folders.runtime else of.runtime, path.stem)
                # Last: as long as its lock is there, the other half is known.
                _remove_half(here, path.stem)
            reaped[path.stem] = None
        # A session locks its name before it makes its folders, and removes them before that.
        for folder in here.iterdir():
            if _NAME.fullmatch(folder.name) and not _lock_file(here, folder.name).exists():
                _remove_half(here, folder.name)
                reaped[folder.name] = None
    return Reaped(sessions=tuple(reaped), unfinished=tuple(unfinished), guests=tuple(guests))


@contextlib.contextmanager
def _dead(path: Path) -> Iterator[bytes | None]:
    """Where a dead session's lock, which is held meanwhile, says that its other half is; None of one that lives."""
    with contextlib.ExitStack() as held:
        try:
            lock = held.enter_context(path.open("rb"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            said = lock.read()
        except OSError:
            yield None
            return
        yield said


def _remove_half(place: Path, name: str) -> None:
    shutil.rmtree(place / name, ignore_errors=True)
    _lock_file(place, name).unlink(missing_ok=True)


# A variable of QEMU's environment that says whose it is: its folder of sockets.
OWNER_VARIABLE = "TESTBED_SOCKETS"


def _kill_guests(sockets: Path) -> None:
    """End QEMUs whose sockets are in `sockets`, before the disks that they hold are removed.

    Their parent-death signal should have done so: this is a second net.
    """
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if b"qemu-system" in words and f"{OWNER_VARIABLE}={sockets}/".encode() in environment:
            with contextlib.suppress(OSError):
                os.kill(int(process.name), signal.SIGKILL)
