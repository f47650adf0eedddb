"""Lists the folders of earlier runs, and selects and removes old ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from testbed.errors import HostError, TestbedError
from testbed.host import eventlog, untrusted_files
from testbed.host.tempdirs import lock_file
from testbed.text import parse_printable_json

if TYPE_CHECKING:
    # Every command imports this module; only those that read results need their models.
    from testbed.report.partial import Partial

# As paths.new_run_folder names them.
_NAME = re.compile(r"([0-9]{8}T[0-9]{6})Z-[0-9a-f]{4}")
# Locked while a run goes on; the kernel unlocks it when the process ends.
_LOCK = ".running"
_COMMAND = "command: "
# A process that made a folder has written something into it after this time.
_FRESH_S = 3600.0
_LARGEST_LOG, _LONGEST_LINE = 1 << 30, 1 << 20
# The results of a run: of scenarios, of a bug, or of a suite.
RESULT_FILES = ("results.json", "repro.json", "reduce.json", "bisect.json", "suite.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The results of a run in short. `cases`: scenarios; of a bug the kernels that were tried, the candidates of a
    reduction or the kernels of a bisection; of a suite its tests. `partial`: how far it came; None if it is
    complete."""

    verdict: str
    command: tuple[str, ...]
    cases: int
    partial: Partial | None


# Reads the results in a run's folder, None if there are none: `result_reader.summarize`.
Read = Callable[[Path], RunSummary | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. `at`: its start. Without results `verdict` is "" and `cases` 0; without a log `command` is empty too.
    `cases` and `partial`: as in `RunSummary`.
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
def running(folder: Path, command: Sequence[str]) -> Iterator[None]:
    """Lock a run's folder, so that nobody removes it, and write its log, whose first event is the `command`.

    :raise HostError: the folder is gone or cannot be written.
    """
    lock = lock_file(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except (OSError, filelock.Timeout) as error:
        raise HostError(f"{folder}: cannot be locked: {error}") from error
    try:
        with eventlog.write_events_to(folder):
            eventlog.log_event(_COMMAND + shlex.join(command))
            yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def run_folders(runs: Path) -> Iterator[tuple[Path, datetime]]:
    """Find the folder of each run, and its start. Skips links and other files; `runs` need not exist."""
    for name in untrusted_files.names_below(runs):
        named = _NAME.fullmatch(name)
        if named is not None and untrusted_files.is_folder_below(runs, name):
            with contextlib.suppress(ValueError):  # no such day
                yield runs / name, datetime.strptime(named[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def list_runs(runs: Path, read: Read, in_use: Collection[Path] = ()) -> tuple[Run, ...]:
    """List all runs, the newest first. `read`: reads a run's results; `in_use`: folders that running VMs write to."""
    listed = []
    for folder, at in run_folders(runs):
        summary = _summary(folder, read)
        listed.append(
            Run(
                folder=folder,
                at=at,
                verdict=summary.verdict,
                command=summary.command,
                cases=summary.cases,
                size_bytes=_size(folder),
                going_on=is_locked(folder) or any(folder in (used, *used.parents) for used in in_use),
                partial=summary.partial,
            )
        )
    return tuple(sorted(listed, key=lambda run: run.folder.name, reverse=True))


def remove_empty_runs(runs: Path) -> tuple[Path, ...]:
    """Remove folders of runs that left nothing but their command, except new ones; return the removed folders."""
    gone = []
    for folder, _ in run_folders(runs):
        old = time.time() - folder.stat().st_mtime > _FRESH_S
        if old and _is_empty(folder):
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(folder)
    return tuple(gone)


def _is_empty(folder: Path) -> bool:
    """Return whether a run left nothing: only folders, and logs that hold no more than its command."""
    return all(
        name == eventlog.FILE and not _has_more_events(Path(above))
        for above, _, names in os.walk(folder)
        for name in names
    )


def _has_more_events(folder: Path) -> bool:
    """Return whether a log holds more than the command, or cannot be read."""
    try:
        with untrusted_files.open_below(folder, eventlog.FILE, _LARGEST_LOG) as log:
            return log.readline(_LONGEST_LINE) != b"" and log.readline(1) != b""
    except OSError:
        return True


def select_unused(
    runs: tuple[Run, ...], now: datetime, *, older_than_s: float | None, larger_than_bytes: int | None, keep: int
) -> tuple[Run, ...]:
    """Select the runs to remove, the oldest first: those that are too old, and the oldest while all are too large
    together.

    Never selects a run that goes on, nor one of the `keep` newest. Pure.
    """
    free = [
        run for run in sorted(runs, key=lambda run: run.folder.name)[: max(0, len(runs) - keep)] if not run.going_on
    ]
    chosen = [run for run in free if older_than_s is not None and (now - run.at).total_seconds() > older_than_s]
    left = sum(run.size_bytes for run in runs if run not in chosen)
    for run in free:
        if larger_than_bytes is not None and left > larger_than_bytes and run not in chosen:
            chosen.append(run)
            left -= run.size_bytes
    return tuple(sorted(chosen, key=lambda run: run.folder.name))


def remove_run(run: Run, runs: Path) -> None:
    """Remove a run's folder, unless the run goes on.

    :raise HostError: it is no run's folder in `runs`, it is in use, or it cannot be removed.
    """
    folder = run.folder
    if folder.parent != runs or folder.is_symlink() or _NAME.fullmatch(folder.name) is None:
        raise HostError(f"{folder}: expected a run's folder in {runs}; it is left alone")
    if is_locked(folder):
        raise HostError(f"{folder}: this run is going on; it is left alone")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise HostError(f"{folder}: cannot be removed: {error.strerror}") from error


def is_locked(folder: Path) -> bool:
    """Return whether a run goes on in a folder. A stranger may have made it: the lock file is neither created nor
    written."""
    try:
        with untrusted_files.open_below(folder, _LOCK, _LARGEST_LOG) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no lock file, or something else
    return False


def result_file(folder: Path) -> str | None:
    """Return the name of the file with a run's results, None if there is none. It may be something else than a file."""
    return next((name for name in RESULT_FILES if untrusted_files.exists_below(folder, name)), None)


def _summary(folder: Path, read: Read) -> RunSummary:
    """Summarize a run; without verdict and cases where it has no results, or none that can be read."""
    try:
        command = () if (summary := read(folder)) is not None else _logged_command(folder)
    except (TestbedError, OSError, ValueError, KeyError, TypeError):
        summary, command = None, ()
    return summary or RunSummary(verdict="", command=command, cases=0, partial=None)


def _logged_command(folder: Path) -> tuple[str, ...]:
    """Read the command of a run without results from its log."""
    with untrusted_files.open_below(folder, eventlog.FILE, _LARGEST_LOG) as log:
        event = str(parse_printable_json(log.readline(_LONGEST_LINE))["event"])
    return tuple(shlex.split(event.removeprefix(_COMMAND))[1:]) if event.startswith(_COMMAND) else ()


def _size(folder: Path) -> int:
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(above) / name).lstat().st_size
    return total
