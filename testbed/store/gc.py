"""Garbage-collects the cache: entries unused for long, then the least recently used while the cache is too large."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import filelock

from testbed.errors import TestbedError
from testbed.host import paths, quota, registry, untrusted_files
from testbed.host.paths import Folders
from testbed.host.tempdirs import lock_file
from testbed.store import cache, image, snapshot_files
from testbed.store.kernels import kernel_files
from testbed.store.kernels.table import shipped_table

# A file of this name marks a virtual environment of `tb` as complete; its time is that of the last use. Everything else
# in the cache is small.
_COMPLETE = "complete"
SUBFOLDERS = ("images", "kernels", "initramfs", "templates", cache.SOURCES)
# An entry that was used less than this ago is kept: a guest may be starting from it.
_FRESH_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """A folder of the cache that can be made again. `used`: when it was last used, in seconds since 1970."""

    folder: Path
    size_bytes: int
    used: float

    @property
    def name(self) -> str:
        return (
            f"{self.folder.parent.name}/{self.folder.name}"
            if self.folder.parent.name in SUBFOLDERS
            else self.folder.name
        )


def list_environments(root: Path) -> tuple[CacheEntry, ...]:
    """List the virtual environments that `tb` has made, except the one that runs this."""
    entries = []
    for mark in root.glob(f"*-*/{_COMPLETE}"):
        with contextlib.suppress(OSError):
            if not Path(sys.prefix).samefile(mark.parent):
                entries.append(
                    CacheEntry(folder=mark.parent, size_bytes=quota.bytes_taken(mark.parent), used=mark.stat().st_mtime)
                )
    return tuple(entries)


def list_entries(root: Path) -> tuple[CacheEntry, ...]:
    """List all entries of a cache, the least recently used first."""
    entries = []
    for folder in (folder for name in SUBFOLDERS for folder in (root / name).glob("*")):
        with contextlib.suppress(OSError):
            used = (folder / cache.META).stat().st_mtime
            entries.append(CacheEntry(folder=folder, size_bytes=quota.bytes_taken(folder), used=used))
    return tuple(sorted(entries, key=lambda piece: (piece.used, piece.name)))


def select_unused(
    pieces: Iterable[CacheEntry],
    now: float,
    *,
    unused_s: float | None,
    limit_bytes: int | None,
    needed: Collection[Path] = (),
) -> tuple[CacheEntry, ...]:
    """Select entries to remove: those unused for `unused_s`, and the least recently used while all exceed the limit.

    An entry that is `needed`, or that was used within the last hour, is never selected. Pure.
    """
    there = sorted(pieces, key=lambda piece: piece.used)
    free = [piece for piece in there if piece.folder not in needed and now - piece.used > _FRESH_S]
    chosen = [piece for piece in free if unused_s is not None and now - piece.used > unused_s]
    left = sum(piece.size_bytes for piece in there if piece not in chosen)
    for piece in free:
        if limit_bytes is not None and left > limit_bytes and piece not in chosen:
            chosen.append(piece)
            left -= piece.size_bytes
    return tuple(sorted(chosen, key=lambda piece: piece.used))


def select_needed(folders: Folders) -> set[Path]:
    """List the images and kernels of supervised guests and of snapshots, which can be restored only with their own."""
    kernels = {vm.record.kernel for vm in registry.list_vms(folders)}
    kernels |= {str(snapshot.vm_spec["kernel"]) for snapshot in snapshot_files.list_snapshots(folders.state)}
    if not kernels:
        return set()
    known, images = shipped_table(), paths.shipped("images")
    needed = {image.image_folder(name, images, folders.cache) for name in paths.image_names(images)}
    for spec in kernels:
        with contextlib.suppress(TestbedError):  # a kernel whose file is gone
            needed.add(kernel_files.kernel_folder(known.resolve(spec), folders.cache))
    return needed


def shrink_cache(folders: Folders, limit_bytes: int, own: Collection[Path]) -> None:
    """Remove entries until the cache is within the limit, except those that are needed. `own`: more that is needed."""
    pieces = list_entries(folders.cache)
    for piece in select_unused(
        pieces, time.time(), unused_s=None, limit_bytes=limit_bytes, needed={*own, *select_needed(folders)}
    ):
        remove(piece.folder)


def remove(folder: Path) -> bool:
    """Remove a folder of the cache, unless it is being made or built from now; tell whether it is gone."""
    locks = [folder.with_name(f"{folder.name}.lock")]
    if folder.parent.name == cache.SOURCES:
        locks.append(cache.build_lock(folder))
    with contextlib.ExitStack() as held:
        try:
            for lock in locks:
                held.enter_context(lock_file(lock).acquire(blocking=False))
            # First the files that mark it as complete, so that a half-removed folder is not taken for a whole one.
            for mark in (cache.META, _COMPLETE):
                (folder / mark).unlink(missing_ok=True)
            untrusted_files.remove_folder(folder)
        except (filelock.Timeout, OSError):
            return False
    return not folder.exists()
