import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.guest.session import open_session, reap
from testbed.host import registry
from testbed.host.paths import Folders
from tests.support.vm_records import RECORD


def folders(root: Path) -> Folders:
    found = Folders(cache=root / "cache", state=root / "state", runtime=root / "run", admission=root / "admission")
    for folder in (found.scratch, found.runs, found.runtime):
        folder.mkdir(parents=True)
    return found


def test_a_session_owns_private_folders_and_removes_them(tmp_path: Path) -> None:
    of = folders(tmp_path)
    with open_session(of) as session:
        (session.scratch / "disk.raw").touch()
        assert stat.S_IMODE(session.sockets.stat().st_mode) == 0o700
        assert stat.S_IMODE(session.scratch.stat().st_mode) == 0o700
        locks = (*of.scratch.glob("*.lock"), *of.runtime.glob("*.lock"))
        assert [stat.S_IMODE(lock.stat().st_mode) for lock in locks] == [0o600, 0o600], "nobody else can hold them"
    assert list(of.runtime.iterdir()) == [] and list(of.scratch.iterdir()) == []


def test_sessions_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    of = folders(tmp_path)
    with open_session(of) as first, open_session(of) as second:
        assert first.name != second.name
        assert first.sockets.is_dir() and second.sockets.is_dir()
        assert not reap(of)


def killed(of: Folders) -> None:
    """A process with a session and a guest that stays, which is killed while it makes something for the cache."""
    script = """
import os, sys
from pathlib import Path
from testbed.host import registry as vms
from testbed.host import registry
from testbed.host.paths import Folders
from tests.support.vm_records import RECORD
from testbed.guest.session import open_session
of = Folders(**{name: Path(path) for name, path in zip(("cache", "state", "runtime", "admission"), sys.argv[1:])})
with vms.claim_name(of, "tiny"), open_session(of) as session:
    (session.scratch / "disk.raw").touch()
    (session.sockets / "qmp").touch()
    (of.cache / "templates" / ".unfinished-key-abc").mkdir(parents=True)
    os.kill(os.getpid(), 9)
"""
    words = [sys.executable, "-c", script, str(of.cache), str(of.state), str(of.runtime), str(of.admission)]
    assert subprocess.run(words, check=False).returncode == -9
    assert list(of.runtime.glob("*/qmp")) and list(of.scratch.glob("*/disk.raw")) and list(of.runtime.glob("vms/tiny"))


def left(of: Folders) -> list[Path]:
    # The lock of what is made once stays, as a lock beside what may be made again.
    stay = (of.runtime / "vms", of.scratch, of.cache / "templates", of.cache / "templates" / "key.lock")
    return [path for path in (*of.runtime.rglob("*"), *of.cache.rglob("*")) if path not in stay]


def test_leftovers_of_a_killed_process_are_removed_by_the_next(tmp_path: Path) -> None:
    of = folders(tmp_path)
    killed(of)
    with open_session(of) as session:
        assert {path.parent.name for path in of.scratch.rglob("*")} == {"scratch"}
        assert {path.stem for path in of.runtime.iterdir()} == {session.name, "vms"}


@pytest.mark.parametrize("shared", ["cache", "runtime"])
def test_both_folders_of_a_killed_session_go_if_one_is_shared(tmp_path: Path, shared: str) -> None:
    first, second = folders(tmp_path / "first"), folders(tmp_path / "second")
    killed(first)
    (name,) = [path.stem for path in first.scratch.glob("*.lock")]
    assert not reap(second)
    assert reap(replace(second, **{shared: getattr(first, shared)})).sessions == (name,)
    assert left(first) == []
    assert left(second) == []


def test_a_killed_vm_is_reported_to_its_own_runtime_folder_alone(tmp_path: Path) -> None:
    first, second = folders(tmp_path / "first"), folders(tmp_path / "second")
    killed(first)
    registry.write_record(first.runtime / "vms" / "tiny", RECORD)
    other = reap(replace(second, cache=first.cache))
    assert len(other.sessions) == 1 and other.guests == ()
    assert reap(first).guests == (RECORD,) and reap(first).guests == ()
    assert left(first) == []


@pytest.mark.parametrize("half", ["scratch", "runtime"])
def test_a_session_folder_without_a_lock_is_removed(tmp_path: Path, half: str) -> None:
    of = folders(tmp_path)
    for name in ("0123abcd", "vms", "0123abc"):
        (getattr(of, half) / name).mkdir(parents=True)
    assert reap(of).sessions == ("0123abcd",)
    assert {path.name for path in getattr(of, half).iterdir()} == {"vms", "0123abc"}


@pytest.mark.parametrize("lost", ["cache", "runtime"])
def test_a_session_folder_whose_counterpart_no_longer_exists_is_removed(tmp_path: Path, lost: str) -> None:
    of = folders(tmp_path)
    killed(of)
    shutil.rmtree(getattr(of, lost))
    for folder in (of.scratch, of.runtime):
        folder.mkdir(parents=True, exist_ok=True)
    assert (
        len(reap(of).sessions) == 1
        and not list(of.scratch.iterdir())
        and {path.name for path in of.runtime.iterdir()} <= {"vms"}
    )


def test_a_running_session_is_kept_whichever_folder_is_shared(tmp_path: Path) -> None:
    first, second = folders(tmp_path / "first"), folders(tmp_path / "second")
    with open_session(first) as session:
        for shared in ("cache", "runtime"):
            assert not reap(replace(second, **{shared: getattr(first, shared)}))
        assert session.sockets.is_dir() and session.scratch.is_dir()
        assert len(list(first.scratch.glob("*.lock"))) == len(list(first.runtime.glob("*.lock"))) == 1
