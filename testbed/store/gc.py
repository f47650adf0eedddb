"""What of the cache may go: folders that were long of no use, and the least recently used while all together are too large."""

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

# Everything else in the cache is small, or of `tb`, which marks a virtual environment as whole, and whenever it is of use, by this file.
_COMPLETE = "complete"
ROOMS = ("images", "kernels", "initramfs", "templates", cache.SOURCES)
# A guest may be starting from what was of use just now.
_FRESH_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A folder that was made once and would be made again. `used`: when it was last of use, in seconds since 1970."""

    folder: Path
    size_bytes: int
    used: float

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}" if self.folder.parent.name in ROOMS else self.folder.name


def list_environments(root: Path) -> tuple[Piece, ...]:
    """The virtual environments that `tb` has made, but for the one that runs this."""
    found = []
    for mark in root.glob(f"*-*/{_COMPLETE}"):
        with contextlib.suppress(OSError):
            if not Path(sys.prefix).samefile(mark.parent):
                found.append(
                    Piece(folder=mark.parent, size_bytes=quota.bytes_taken(mark.parent), used=mark.stat().st_mtime)
                )
    return tuple(found)


def list_pieces(root: Path) -> tuple[Piece, ...]:
    """All of a cache, the least recently used first."""
    found = []
    for folder in (folder for name in ROOMS for folder in (root / name).glob("*")):
        with contextlib.suppress(OSError):
            used = (folder / cache.META).stat().st_mtime
            found.append(Piece(folder=folder, size_bytes=quota.bytes_taken(folder), used=used))
    return tuple(sorted(found, key=lambda piece: (piece.used, piece.name)))


def select_unused(
    pieces: Iterable[Piece],
    now: float,
    *,
    unused_s: float | None,
    limit_bytes: int | None,
    needed: Collection[Path] = (),
) -> tuple[Piece, ...]:
    """Which may go: those of no use for `unused_s`, and the least recently used while all are larger than the limit.

    Never one that is `needed`, nor one that was of use within the last hour. Pure.
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
    """The images and kernels of guests that stay, and of snapshots, which only go on from what they were made of."""
    kernels = {vm.record.kernel for vm in registry.list_vms(folders)}
    kernels |= {str(one.order["kernel"]) for one in snapshot_files.list_snapshots(folders.state)}
    if not kernels:
        return set()
    known, images = shipped_table(), paths.shipped("images")
    found = {image.image_folder(name, images, folders.cache) for name in paths.image_names(images)}
    for spec in kernels:
        with contextlib.suppress(TestbedError):  # a file that is gone
            found.add(kernel_files.kernel_folder(known.resolve(spec), folders.cache))
    return found


def keep_within(folders: Folders, limit_bytes: int, own: Collection[Path]) -> None:
    """Keep the cache as small as that, as far as that takes nothing that anybody needs. `own`: what is needed here besides."""
    pieces = list_pieces(folders.cache)
    for piece in select_unused(
        pieces, time.time(), unused_s=None, limit_bytes=limit_bytes, needed={*own, *select_needed(folders)}
    ):
        remove(piece.folder)


def remove(folder: Path) -> bool:
    """Remove a folder of the cache, unless it is being made or built from just now; whether it is gone."""
    locks = [folder.with_name(f"{folder.name}.lock")]
    if folder.parent.name == cache.SOURCES:
        locks.append(cache.build_lock(folder))
    with contextlib.ExitStack() as held:
        try:
            for lock in locks:
                held.enter_context(lock_file(lock).acquire(blocking=False))
            # What is half removed must not look whole.
            for mark in (cache.META, _COMPLETE):
                (folder / mark).unlink(missing_ok=True)
            untrusted_files.remove_folder(folder)
        except (filelock.Timeout, OSError):
            return False
    return not folder.exists()
