import stat
import subprocess
import sys
from pathlib import Path

from testbed.paths import Folders
from testbed.session import open_session, reap


def folders(root: Path) -> Folders:
    found = Folders(cache=root / "cache", state=root / "state", runtime=root / "run")
    for folder in (found.scratch, found.runs, found.runtime):
        folder.mkdir(parents=True)
    return found


def test_a_session_owns_private_folders_and_removes_them(tmp_path: Path) -> None:
    of = folders(tmp_path)
    with open_session(of) as session:
        (session.scratch / "disk.raw").touch()
        assert stat.S_IMODE(session.sockets.stat().st_mode) == 0o700
        assert stat.S_IMODE(session.scratch.stat().st_mode) == 0o700
    assert list(of.runtime.iterdir()) == [] and list(of.scratch.iterdir()) == []


def test_sessions_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    of = folders(tmp_path)
    with open_session(of) as first, open_session(of) as second:
        assert first.name != second.name
        assert first.sockets.is_dir() and second.sockets.is_dir()
        assert reap(of) == ()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    of = folders(tmp_path)
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom testbed.paths import Folders\nfrom testbed.session import open_session\n"
        "root = Path(sys.argv[1])\n"
        "with open_session(Folders(cache=root / 'cache', state=root / 'state', runtime=root / 'run')) as session:\n"
        "    (session.scratch / 'disk.raw').touch()\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert len(list(of.runtime.iterdir())) == 1
    with open_session(of) as session:
        assert [path.name for path in of.runtime.iterdir()] == [session.name]
        assert not list(of.scratch.glob("*/disk.raw"))
