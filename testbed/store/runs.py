"""The folders of earlier runs: what each holds, and which may go."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from testbed import journal, jsons, partial
from testbed.errors import HostError
from testbed.held import lock_file
from testbed.partial import Partial

# As paths.new_run_folder names them.
_NAME = re.compile(r"(\d{8}T\d{6})Z-[0-9a-f]{4}")
# Held while a run goes on; free when its process has ended, however it did.
_LOCK = ".running"
_COMMAND = "command: "
# Whoever has made a folder has put something into it by then.
_FRESH_S = 3600.0
# What a run leaves: of scenarios, of bugs, or of a suite; and what each of its cases is.
RESULTS = {"results.json": "scenarios", "repro.json": "kernels", "reduce.json": "steps", "bisect.json": "asked", "suite.json": "tests"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. `at`: when it began; `verdict` is empty and `cases` 0 where it left no results, and `command` where it left nothing.

    `cases`: scenarios; of a bug the kernels that were tried, or the candidates of a reduction. `partial`: how far it came, unless it is
    complete.
    """

    folder: Path
    at: datetime
    verdict: str
    command: tuple[str, ...]
    cases: int
    size_bytes: int
    going_on: bool
    partial: Partial | None = None


@contextlib.contextmanager
def going_on(folder: Path, command: Sequence[str]) -> Iterator[None]:
    """A run that nobody removes meanwhile, and whose log is written, which begins with its `command`.

    :raise HostError: its folder is gone or cannot be written.
    """
    lock = lock_file(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except (OSError, filelock.Timeout) as error:
        raise HostError(f"{folder}: cannot be locked: {error}") from error
    try:
        with journal.writing(folder):
            journal.say(_COMMAND + shlex.join(command))
            yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def folders(runs: Path) -> Iterator[tuple[Path, datetime]]:
    """Each run's folder, and when it began. Links and other things are no runs; there may be no place for any yet."""
    for folder in runs.iterdir() if runs.is_dir() else ():
        named = _NAME.fullmatch(folder.name)
        if named is not None and folder.is_dir() and not folder.is_symlink():
            yield folder, datetime.strptime(named[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def every(runs: Path, in_use: Collection[Path] = ()) -> tuple[Run, ...]:
    """All of them, the newest first; `in_use`: folders that guests which stay write to."""
    found = []
    for folder, at in folders(runs):
        verdict, command, cases, ended = _results(folder)
        found.append(
            Run(
                folder=folder,
                at=at,
                verdict=verdict,
                command=command,
                cases=cases,
                size_bytes=_size(folder),
                going_on=held(folder) or any(folder in (used, *used.parents) for used in in_use),
                partial=ended,
            )
        )
    return tuple(sorted(found, key=lambda run: run.folder.name, reverse=True))


def sweep(runs: Path) -> tuple[Path, ...]:
    """Remove folders of runs of which nothing came; returns them. One that was just made is left alone."""
    gone = []
    for folder, _ in folders(runs):
        old = time.time() - folder.stat().st_mtime > _FRESH_S
        if old and not any(path.is_file() for path in folder.rglob("*") if path.name != journal.FILE or _says_more(path)):
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(folder)
    return tuple(gone)


def _says_more(log: Path) -> bool:
    """Whether a run's log holds more than its command."""
    with log.open(encoding="utf-8") as lines:
        return lines.readline() != "" and lines.readline() != ""


def superfluous(
    runs: tuple[Run, ...], now: datetime, *, older_than_s: float | None, larger_than_bytes: int | None, keep: int
) -> tuple[Run, ...]:
    """Which of all runs may go, the oldest first: those that are too old, and the oldest while all together are too large.

    Never one that is going on, nor one of the `keep` newest. Pure.
    """
    free = [run for run in sorted(runs, key=lambda run: run.folder.name)[: max(0, len(runs) - keep)] if not run.going_on]
    chosen = [run for run in free if older_than_s is not None and (now - run.at).total_seconds() > older_than_s]
    left = sum(run.size_bytes for run in runs if run not in chosen)
    for run in free:
        if larger_than_bytes is not None and left > larger_than_bytes and run not in chosen:
            chosen.append(run)
            left -= run.size_bytes
    return tuple(sorted(chosen, key=lambda run: run.folder.name))


def remove(run: Run, runs: Path) -> None:
    """Remove a run's folder, unless it is going on by now.

    :raise HostError: it is no folder of `runs`, it is in use, or it cannot be removed.
    """
    folder = run.folder
    if folder.parent != runs or folder.is_symlink() or _NAME.fullmatch(folder.name) is None:
        raise HostError(f"{folder}: expected a run's folder in {runs}; it is left alone")
    if held(folder):
        raise HostError(f"{folder}: this run is going on; it is left alone")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise HostError(f"{folder}: cannot be removed: {error.strerror}") from error


def held(folder: Path) -> bool:
    path = folder / _LOCK
    if not path.exists():
        return False
    lock = lock_file(path)
    try:
        lock.acquire(blocking=False)
    except (OSError, filelock.Timeout):
        return True
    lock.release()
    return False


def results(folder: Path) -> Path | None:
    """The file with a run's results."""
    return next((path for name in RESULTS if (path := folder / name).is_file()), None)


def _results(folder: Path) -> tuple[str, tuple[str, ...], int, Partial | None]:
    try:
        path = results(folder)
        if path is None:
            return "", _begun(folder), 0, None
        found = jsons.parsed(path.read_text(encoding="utf-8"))
        said = found["verdict"] if path.name == "results.json" else found["result"]
        return str(said), tuple(map(str, found["command"][1:])), len(found[RESULTS[path.name]]), partial.read(found)
    except (OSError, ValueError, KeyError, TypeError):
        return "", (), 0, None


def _begun(folder: Path) -> tuple[str, ...]:
    """The command of a run that left no results, by its log."""
    with (folder / journal.FILE).open(encoding="utf-8") as log:
        event = str(jsons.parsed(log.readline())["event"])
    return tuple(shlex.split(event.removeprefix(_COMMAND))[1:]) if event.startswith(_COMMAND) else ()


def _size(folder: Path) -> int:
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(above) / name).lstat().st_size
    return total
