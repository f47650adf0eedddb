"""Folders that are locked by their creator: only those that killed processes have left are removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.host import tempdirs

# Has a temporary folder, says which, and waits to be killed.
HOLDING = """\
import sys
from testbed.host import tempdirs

with tempdirs.temporary() as folder:
    (folder / "file").write_bytes(b"large")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_next_command_removes_only_unlocked_temporary_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().decode().strip())
        assert folder.parent == tmp_path and tempdirs.sweep_temporary() == ()
        assert (folder / "file").exists() and folder.stat().st_mode & 0o777 == 0o700
        child.kill()
    with tempdirs.temporary() as ours:
        assert tempdirs.sweep_temporary() == (folder,)
        assert list(tmp_path.iterdir()) == [ours]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_locked_yet_stays_for_a_moment_and_a_link_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    new, somebodys = tmp_path / "testbed-tmp-1.abcd.new", tmp_path / "somebodys"
    new.mkdir()
    (somebodys / "file").mkdir(parents=True)
    (tmp_path / "testbed-tmp-2").symlink_to(somebodys)
    assert tempdirs.sweep_temporary() == () and new.exists()
    os.utime(new, (0, 0))
    assert tempdirs.sweep_temporary() == (new,) and not new.exists()
    assert (somebodys / "file").exists()
