"""The cache, the state and their contents, attacked by another user of this machine."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.host import other_users, paths
from testbed.host.admission import Admission, Claim
from testbed.progress import Silent
from testbed.store import cache
from testbed.units import GIB
from tests.support.lock_holder import lock_holder

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
# What another user does to a lock that can be opened: hold it for ever.
_HOLD = """
import fcntl, os, sys
os.setuid(65534)
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a home that everybody can enter, unlike pytest's own folders, with the most common umask set."""
    for variable in ("TESTBED_CACHE", "TESTBED_STATE", "TESTBED_ADMISSION"):
        monkeypatch.delenv(variable, raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        above = Path(place)
        above.chmod(0o755)
        monkeypatch.setenv("XDG_CACHE_HOME", str(above / "home/cache"))
        monkeypatch.setenv("XDG_STATE_HOME", str(above / "home/state"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(above / "run"))
        (above / "run").mkdir(mode=0o700)
        before = os.umask(0o022)
        yield above / "home"
        os.umask(before)


def modes(*folders: Path) -> set[int]:
    return {stat.S_IMODE(folder.stat().st_mode) for folder in folders}


def neighbour(lock: Path) -> str:
    """Try to take a lock as another user; return the error, empty if that user holds the lock."""
    words = ["/usr/bin/python3", "-I", "-S", "-c", _HOLD, str(lock)]
    return subprocess.run(words, capture_output=True, text=True, check=False).stderr


def test_folders_are_created_private(home: Path) -> None:
    found = paths.folders()
    run = paths.new_run_folder(found.runs)
    rooms = [path for path in found.cache.iterdir() if path.is_dir()]
    assert {"templates", "images", "kernels", "probes"} <= {room.name for room in rooms}
    assert modes(home, home / "cache", found.cache, *rooms, home / "state", found.state, found.runs, run) == {0o700}


@pytest.mark.parametrize("chosen", [False, True])
def test_public_folders_of_older_versions_are_made_private(
    chosen: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chosen`: the user has named these folders, perhaps for other files as well; then their modes stay."""
    old = [
        home / "cache/testbed",
        home / "cache/testbed/templates",
        home / "state/testbed",
        home / "state/testbed/runs",
    ]
    for folder in old:
        folder.mkdir(parents=True)
    assert modes(*old) == {0o755}
    if chosen:
        monkeypatch.setenv("TESTBED_CACHE", str(old[0]))
        monkeypatch.setenv("TESTBED_STATE", str(old[2]))
    paths.folders()
    assert modes(old[1], old[3]) == {0o700}
    assert modes(old[0], old[2]) == {0o755 if chosen else 0o700}


async def test_other_files_in_the_queue_folder_are_ignored_and_kept(tmp_path: Path) -> None:
    (tmp_path / "my-own-notes").write_text("mine")
    with (tmp_path / "a-b-c").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(json.dumps({"cores": 1, "memory_bytes": 1, "who": "x"}))
        other.flush()
        async with Admission(tmp_path, cores=1, memory_bytes=8 * GIB).admitted(
            Claim(cores=1, memory_bytes=1, who="me"), lambda said: None
        ):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-b-c", "gate", "my-own-notes"]


@pytest.mark.parametrize("variable", ["TESTBED_CACHE", "TESTBED_STATE", "TESTBED_ADMISSION"])
def test_a_folder_that_other_users_can_write_to_is_refused(
    variable: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = home / "shared"
    shared.mkdir(parents=True)
    shared.chmod(0o1777)
    monkeypatch.setenv(variable, str(shared))
    with pytest.raises(
        HostError, match=rf"{shared}: expected a folder that only uid \d+ may write to, got mode 1777 .*{variable}"
    ):
        paths.folders()
    assert modes(shared) == {0o1777}, "it may be everybody's on purpose"


@pytest.mark.parametrize("variable", ["TESTBED_CACHE", "TESTBED_STATE", "TESTBED_ADMISSION"])
def test_a_folder_that_other_users_can_replace_is_refused(
    variable: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = home / "public"
    public.mkdir(parents=True)
    public.chmod(0o777)
    monkeypatch.setenv(variable, str(public / "mine/folder"))
    with pytest.raises(
        HostError, match=rf"{public}: expected a folder in which other users cannot put another .*{variable}"
    ):
        paths.folders()
    public.chmod(0o1777)
    paths.folders()


@as_root
def test_a_runtime_folder_of_another_user_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `su` the variable names the other user's folder, whose owner could replace ours at any time."""
    other = home / "other"
    other.mkdir(mode=0o700, parents=True)
    os.chown(other, 65534, 65534)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(other))
    assert paths.folders().runtime == Path(f"/tmp/testbed-{os.getuid()}") and not list(other.iterdir())
    os.chown(other, os.getuid(), -1)
    assert paths.folders().runtime == other / "testbed"


@as_root
def test_a_cache_folder_made_by_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = paths.folders().cache / "templates"
    os.chown(room, 65534, 65534)
    paths.folders()  # as for root in a container whose cache is a volume of its caller
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for path in (home / "cache/testbed", home / "cache/testbed/built"):
        os.chown(path, 1000, 1000)
    with pytest.raises(HostError, match="only uid 1000 may write to, got mode 0700 of uid 65534"):
        paths.folders()


@as_root
async def test_another_user_cannot_lock_the_cache(home: Path) -> None:
    async def make(folder: Path) -> dict[str, object]:
        return {}

    found = paths.folders()
    await cache.make_once(found.cache / "templates/key", make, Silent(), "a template")
    lock = found.cache / "templates/key.lock"
    assert "PermissionError" in neighbour(lock)
    # The same if the user has opened the folders to others.
    for folder in (home, home / "cache", found.cache, lock.parent):
        folder.chmod(0o755)
    assert "PermissionError" in neighbour(lock)
    lock.chmod(0o644)
    assert neighbour(lock) == "", "this is how an older version left it"


@as_root
async def test_another_user_cannot_lock_the_guest_queue(home: Path) -> None:
    folder = home.parent / "admission"
    folder.mkdir(mode=0o755)
    async with Admission(folder, cores=1, memory_bytes=64 * GIB).admitted(
        Claim(cores=1, memory_bytes=1, who="one"), print
    ):
        there = sorted(folder.iterdir())
        assert len(there) == 2 and modes(*there) == {0o600}
        for path in there:
            assert "PermissionError" in neighbour(path)


async def test_the_holder_of_the_guest_queue_is_named(tmp_path: Path) -> None:
    """Another testbed process that a signal has stopped may hold it."""
    notes = list[str]()
    with lock_holder(tmp_path / "gate") as other:

        async def admitted() -> None:
            async with Admission(tmp_path, cores=1, memory_bytes=64 * GIB).admitted(
                Claim(cores=1, memory_bytes=1, who="one"), notes.append
            ):
                pass

        waiting = asyncio.create_task(admitted())
        while not notes:
            await asyncio.sleep(0.01)
        other.kill()
        await waiting
    assert notes[0].startswith(f"waiting for pid {other.pid} of {other_users.user_name(os.geteuid())}, since 20")
    assert notes[0].endswith(f", which holds {tmp_path / 'gate'}")
