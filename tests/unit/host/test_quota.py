"""Limits of what runs and the cache take of this machine's disks, and garbage collection of the cache."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import filelock
import pytest

from testbed.errors import HostError, UsageError
from testbed.host import logfile, quota
from testbed.host.logfile import Log
from testbed.host.quota import Quota
from testbed.report import formats
from testbed.store import cache, gc
from testbed.store.gc import CacheEntry
from testbed.units import GIB, MIB
from tests.support.command import testbed

HOUR = 3600.0
NOW = 1000 * HOUR


def test_a_limit_must_be_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(quota.RUN_LIMIT, raising=False)
    assert quota.size_limit(quota.RUN_LIMIT) == 20 * GIB
    monkeypatch.setenv(quota.RUN_LIMIT, "3M")
    assert quota.size_limit(quota.RUN_LIMIT) == 3 * MIB
    monkeypatch.setenv(quota.RUN_LIMIT, "much")
    with pytest.raises(UsageError, match="TESTBED_RUN_LIMIT=much: expected a size such as 2G"):
        quota.size_limit(quota.RUN_LIMIT)


def test_holes_do_not_count_and_a_disk_with_free_space_is_not_full(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(GIB)
    assert quota.bytes_taken(tmp_path) == 0
    (tmp_path / "whole").write_bytes(bytes(MIB))
    assert MIB <= quota.bytes_taken(tmp_path) < 2 * MIB
    assert quota.full_disk_message((tmp_path, tmp_path / "nowhere")) is None
    assert quota.full_disk_message((Path("/proc"),)) is not None  # it has no room at all


async def test_all_folders_of_a_run_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_POLL_S", 0.01)
    limit = Quota(3 * MIB)
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_bytes(bytes(MIB))
    watching = [asyncio.create_task(limit.exceeded((folder,))) for folder in folders]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in watching)
    (folders[0] / "more").write_bytes(bytes(2 * MIB))
    for said in await asyncio.gather(*watching):
        assert "of this machine's disks, and may take 3M; allow more with TESTBED_RUN_LIMIT" in said


async def test_long_lived_guests_share_the_limit_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(2 * MIB))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Quota(4 * MIB).exceeded((folder,)), 0.1)
    said = await Quota(4 * MIB, sharing=4).exceeded((folder,))
    assert "takes 2M of this machine's disks, and may take 1M, its part of 4M for 4 guests; allow more with" in said


def test_a_log_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    said: list[str] = []
    log = Log(tmp_path / "nowhere" / "log", said.append)
    log.note({"a": 1})
    log.add("b")
    assert len(said) == 1 and said[0].startswith(
        f"{tmp_path}/nowhere/log: cannot be written: No such file or directory; make room there"
    )


def piece(name: str, hours: float, size: int = 100) -> CacheEntry:
    return CacheEntry(folder=Path("/cache/templates") / name, size_bytes=size, used=NOW - hours * HOUR)


def superfluous(
    *pieces: CacheEntry, unused_h: float | None = None, limit: int | None = None, needed: tuple[str, ...] = ()
) -> list[str]:
    unused_s = None if unused_h is None else unused_h * HOUR
    kept = [Path("/cache/templates") / name for name in needed]
    return [one.folder.name for one in gc.select_unused(pieces, NOW, unused_s=unused_s, limit_bytes=limit, needed=kept)]


def test_gc_selects_unused_entries_and_then_the_least_recently_used() -> None:
    of = (piece("old", 50), piece("older", 100), piece("new", 2), piece("fresh", 0.5))
    assert superfluous(*of, unused_h=40) == ["older", "old"]
    assert superfluous(*of, unused_h=40, needed=("older",)) == ["old"]
    assert superfluous(*of, limit=250) == ["older", "old"]
    assert superfluous(*of, limit=400) == []
    assert superfluous(*of, unused_h=60, limit=250) == ["older", "old"]
    # Something may be starting from what was used just now.
    assert superfluous(*of, limit=0) == ["older", "old", "new"]
    assert superfluous(*of, unused_h=0) == ["older", "old", "new"]


def cached(root: Path, name: str, *, hours: float) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "memory").write_bytes(bytes(MIB))
    (folder / cache.META).write_text("{}")
    os.utime(folder / cache.META, (NOW - hours * HOUR,) * 2)
    return folder


@pytest.mark.slow
def test_gc_removes_only_leftovers_and_unused_entries(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    old = cached(root, "templates/aaaa", hours=50)
    new = cached(root, "kernels/bbbb", hours=50)
    cache.mark_used(new)
    leftover, other, environment = root / "templates" / ".unfinished-cccc-xyz", root / "venv-1", root / "venv-2"
    for folder in (leftover, other, environment):
        folder.mkdir()
        (folder / "file").touch()
    (other / "complete").touch()  # of use just now
    (environment / "complete").touch()
    os.utime(environment / "complete", (0, 0))
    dry = testbed(tmp_path, "gc", "--dry-run", "--json", XDG_RUNTIME_DIR=str(tmp_path))
    assert [one["name"] for one in json.loads(dry.stdout)["would_be_removed"]] == [
        "venv-2",
        "templates/aaaa",
    ] and old.exists()
    done = testbed(tmp_path, "gc", XDG_RUNTIME_DIR=str(tmp_path))
    assert done.returncode == 0 and done.stdout.split()[::2] == ["venv-2", "templates/aaaa"], done
    assert "1.0M" in done.stdout and "2 removed" in done.stderr
    assert not any(folder.exists() for folder in (old, leftover, environment)) and new.exists() and other.exists()
    assert "--unused-for long: expected an age such as 30d" in testbed(tmp_path, "gc", "--unused-for", "long").stderr


@pytest.mark.slow
def test_gc_keeps_a_source_that_is_being_built_from(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    source = cached(root, "sources/debian-6.1-aaaa", hours=500)
    with filelock.FileLock(root / "sources" / "debian-6.1-aaaa.build.lock"):
        assert "0 removed" in testbed(tmp_path, "gc", XDG_RUNTIME_DIR=str(tmp_path)).stderr and source.exists()
    assert "1 removed" in testbed(tmp_path, "gc", XDG_RUNTIME_DIR=str(tmp_path)).stderr and not source.exists()


def test_gc_keeps_entries_that_are_being_made(tmp_path: Path) -> None:
    leftover = tmp_path / "templates" / ".unfinished-key-abc"
    leftover.mkdir(parents=True)
    with filelock.FileLock(tmp_path / "templates" / "key.lock"):
        assert cache.sweep(tmp_path) == ()
    assert cache.sweep(tmp_path) == (leftover,) and not leftover.exists()


def test_an_entry_that_does_not_fit_on_the_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "argv.txt").symlink_to("/dev/full")
    with pytest.raises(HostError, match=r"argv\.txt: cannot be written: No space left on device; make room there"):
        logfile.write_log(tmp_path / "argv.txt", "-cpu max")


def test_a_file_of_a_run_that_cannot_be_written_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(HostError, match=r"report\.html: cannot be written: No space left on device"):
        formats.write_atomically("a page", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
