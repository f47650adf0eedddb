"""Snapshots: a supervised guest saved with its disks under a name, to go back to or to start others from."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import HostError, UsageError
from testbed.host import process, tempdirs
from testbed.store import cache

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}")
_COPY_S = 600
# A snapshot that is being saved has a name that begins with a dot and ends with this.
_UNFINISHED = ".unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`vm_spec`: how its VM was launched, as JSON; `machine`: the key of its machine; the rest as in `Template`."""

    folder: Path
    host_key: bytes
    boot_s: float
    machine: str
    vm_spec: dict[str, Any]
    memory: Path | None = None  # guest memory is in the state file

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def complete(self) -> bool:
        """Whether its files still exist."""
        return self.state.exists()

    @property
    def title(self) -> str:
        return f"snapshot {self.folder.name} of {self.folder.parent.name}"

    def disk(self, file: str) -> Path:
        """Return the copy of a disk's file."""
        return self.folder / "disks" / file


def snapshot_folder(state: Path, vm: str, name: str) -> Path:
    """Return where a guest's snapshot of this name is, or will be.

    :raise UsageError: the name is not valid.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"snapshot {name!r}: expected small letters, digits, dots and dashes, at most 32")
    return state / "snapshots" / vm / name


def list_snapshots(state: Path) -> tuple[Snapshot, ...]:
    """List all snapshots by guest and name; unreadable ones are left out."""
    found = []
    for folder in sorted((state / "snapshots").glob("*/*")):
        try:
            found.append(read_snapshot(folder))
        except HostError:
            continue
    return tuple(found)


def find_snapshot(state: Path, vm: str, name: str) -> Snapshot:
    """:raise UsageError: the guest has no snapshot of that name."""
    folder = snapshot_folder(state, vm, name)
    if not folder.is_dir():
        there = ", ".join(one.folder.name for one in list_snapshots(state) if one.folder.parent.name == vm)
        raise UsageError(
            f"{vm} has no snapshot {name!r}; "
            f"{f'it has {there}' if there else f'make one with: testbed snapshot {vm} {name}'}"
        )
    return read_snapshot(folder)


@contextlib.contextmanager
def new_snapshot(folder: Path) -> Iterator[Path]:
    """Create a folder that becomes `folder` when the block ends, and is removed if it ends with an error.

    The process that fills it holds a lock on it (flock), so that the folder of a killed process is recognized.
    """
    path = folder.with_name(f".{folder.name}{_UNFINISHED}")
    shutil.rmtree(path, ignore_errors=True)  # a guest's commands run one after the other
    try:
        with tempdirs.create(path) as made:
            yield made
            made.rename(folder)
    finally:
        _remove_if_empty(folder.parent)


def remove_unfinished(state: Path) -> tuple[Path, ...]:
    """Remove the half-saved snapshots of killed supervisors; returns them."""
    gone = tempdirs.sweep((state / "snapshots").glob(f"*/.*{_UNFINISHED}*"))
    for folder in gone:
        _remove_if_empty(folder.parent)
    return gone


def _remove_if_empty(folder: Path) -> None:
    """Remove a guest's folder together with the last of its snapshots."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_record(folder: Path, *, host_key: bytes, boot_s: float, machine: str, order: dict[str, Any]) -> None:
    """Write the last file of a snapshot, which makes it complete."""
    meta = {"host_key": host_key.hex(), "boot_s": boot_s, "machine": machine, "order": order}
    (folder / cache.META).touch(mode=0o600)
    (folder / cache.META).write_text(json.dumps(meta), encoding="utf-8")


def read_snapshot(folder: Path) -> Snapshot:
    """:raise HostError: the snapshot is incomplete or damaged."""
    meta = cache.read_meta(folder)
    try:
        return Snapshot(
            folder=folder,
            host_key=bytes.fromhex(meta["host_key"]),
            boot_s=float(meta["boot_s"]),
            machine=str(meta["machine"]),
            vm_spec=dict(meta["order"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise HostError(f"{folder / cache.META}: expected a snapshot's record, got {error!r}") from error


def remove_snapshot(snapshot: Snapshot) -> None:
    shutil.rmtree(snapshot.folder, ignore_errors=True)
    _remove_if_empty(snapshot.folder.parent)


async def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk's file with its holes; the copy shares its blocks with the source where the filesystem can do that.

    :raise HostError: it cannot be copied.
    """
    if not stat.S_ISREG(source.lstat().st_mode):  # QEMU's account could have put a link in its place
        raise HostError(f"{source}: expected a disk's file, got something else")
    target.parent.mkdir(mode=0o700, exist_ok=True)
    await process.run(
        ["cp", "--no-dereference", "--sparse=always", "--reflink=auto", source, target], timeout_s=_COPY_S
    )
