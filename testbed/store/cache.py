"""Makes each cached folder once, under a key of its inputs: atomically, under a lock, and never half-finished."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import filelock

from testbed.errors import HostError
from testbed.host import eventlog, other_users, paths
from testbed.host.tempdirs import lock_file
from testbed.progress import Progress
from testbed.store import unshare
from testbed.text import parse_json

META = "meta.json"
# The folder of the cache that holds kernel sources.
SOURCES = "sources"
# UNFINISHED + NAME + "-" + random: a folder that the holder of NAME.lock beside it is making.
UNFINISHED = ".unfinished-"


def read_meta(folder: Path) -> dict[str, Any]:
    """Read what was recorded when a folder was made.

    :raise HostError: the record is missing or damaged; the message says how to make the folder again.
    """
    try:
        meta = parse_json((folder / META).read_text(encoding="utf-8"))
        if not isinstance(meta, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError) as error:
        raise HostError(
            f"{folder / META}: cannot be read ({error}); remove {folder}, and the next run makes it again"
        ) from error
    return meta


@contextlib.asynccontextmanager
async def locked(path: Path, progress: Progress, what: str) -> AsyncIterator[None]:
    """Hold a lock file that excludes every other process of this user; the kernel frees it when this process ends.

    While another process holds the lock, a note names that process.

    :raise HostError: the file cannot be written.
    """
    paths.make_folder(path.parent)
    lock = lock_file(path)
    reported = ""
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except filelock.Timeout:
            if (waiting := f"{what}: waiting for {other_users.lock_holder(path)}, which holds {path}") != reported:
                progress.note(waiting)
                eventlog.log_event(waiting)
                reported = waiting
            await asyncio.sleep(0.2)
        except OSError as error:
            raise HostError(f"{path}: cannot be locked: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


async def make_once(
    folder: Path,
    make: Callable[[Path], Awaitable[dict[str, Any]]],
    progress: Progress,
    what: str,
    *,
    many_files: bool = False,
) -> Path:
    """Return `folder`, and make it first if it is not there: `make` fills an unfinished folder and returns its record.

    `many_files`: one sync(2) makes them durable, instead of an fsync(2) for each.

    A folder under its final name is complete; the unfinished one of a killed run is removed by the next run.

    :raise HostError: no space, no permission; or what `make` raises.
    """
    if (folder / META).is_file():
        mark_used(folder)
        return folder
    async with locked(folder.with_name(f"{folder.name}.lock"), progress, what):
        if (folder / META).is_file():
            return folder
        try:
            for leftover in folder.parent.glob(f"{UNFINISHED}{folder.name}-*"):
                unshare.remove(leftover)
            unfinished = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{folder.name}-", dir=folder.parent))
            try:
                began = time.monotonic()
                meta = await make(unfinished)
                eventlog.log_event(f"{what}: made in {time.monotonic() - began:.1f} s: {folder}")
                (unfinished / META).write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n", encoding="utf-8")
                await asyncio.to_thread(os.sync) if many_files else await asyncio.to_thread(_sync_tree, unfinished)
                if folder.exists():
                    shutil.rmtree(folder)
                unfinished.rename(folder)
            finally:
                unshare.remove(unfinished)
        except OSError as error:
            raise HostError(
                f"{what}: {error.filename or folder}: {error.strerror}; the cache is {folder.parent}"
            ) from error
    return folder


def build_lock(source: Path) -> Path:
    """Return the lock to hold while building from a source: builds change its tree."""
    return source.with_name(f"{source.name}.build.lock")


def mark_used(folder: Path) -> None:
    """Record that a folder is used now; garbage collection removes the least recently used ones first."""
    with contextlib.suppress(OSError):
        os.utime(folder / META)


def sweep(root: Path) -> tuple[Path, ...]:
    """Remove and return the unfinished folders of killed runs anywhere in the cache; folders being made are kept."""
    gone = []
    for leftover in root.glob(f"*/{UNFINISHED}*"):
        name, _, _ = leftover.name.removeprefix(UNFINISHED).rpartition("-")
        lock = lock_file(leftover.with_name(f"{name}.lock"))
        try:
            lock.acquire(blocking=False)
        except (filelock.Timeout, OSError):
            continue
        try:
            if unshare.remove(leftover):
                gone.append(leftover)
        finally:
            lock.release()
    return tuple(gone)


def _sync_tree(folder: Path) -> None:
    """Write a folder to the disk, so that a power cut after the rename leaves no complete name on incomplete files."""
    for path in (*folder.rglob("*"), folder):
        if path.is_symlink():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
