"""Folders that are made once, under a key of what they are made from: atomic, locked, and never half-finished."""

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
# The room of kernel sources.
SOURCES = "sources"
# UNFINISHED + NAME + "-" + anything: being made by whoever holds NAME.lock beside it.
UNFINISHED = ".unfinished-"


def read_meta(folder: Path) -> dict[str, Any]:
    """What was recorded when a folder was made.

    :raise HostError: it is missing or damaged; says how to make the folder again.
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
    """Hold a lock file against every other process of this user; the lock goes with the process, however it ends. While another holds it,
    that one is named.

    :raise HostError: the file cannot be written.
    """
    paths.make_folder(path.parent)
    lock = lock_file(path)
    said = ""
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except filelock.Timeout:
            if (waiting := f"{what}: waiting for {other_users.lock_holder(path)}, which holds {path}") != said:
                progress.note(waiting)
                eventlog.log_event(waiting)
                said = waiting
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
    """`folder`, made by `make` if it is not there: `make` fills an unfinished folder and returns what to record of it.

    `many_files`: so many that they are made durable by one sync(2) and not one by one.

    A folder under its final name is complete; one that a killed run left behind is swept away by the next.

    :raise HostError: no room, no permission; or what `make` raises.
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
    """Whoever builds from the source in this folder holds it: builds change its tree."""
    return source.with_name(f"{source.name}.build.lock")


def mark_used(folder: Path) -> None:
    """Remember that a folder was of use now, for whoever must choose what to remove."""
    with contextlib.suppress(OSError):
        os.utime(folder / META)


def sweep(root: Path) -> tuple[Path, ...]:
    """Remove what killed runs have left half-finished anywhere in the cache; returns it. What is being made now is left alone."""
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
    """A power cut after the rename must not leave a complete name on incomplete files."""
    for path in (*folder.rglob("*"), folder):
        if path.is_symlink():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
