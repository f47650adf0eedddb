"""Commands for running VMs: completion, logs, scp."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.cli import vms as cli_vms
from testbed.host import registry
from testbed.host.paths import Folders
from tests.support.vm_records import RECORD


def test_names_complete_in_the_shell(folders: Folders, tmp_path: Path) -> None:
    runtime = folders.runtime / "testbed"
    runtime.mkdir()
    with registry.claim_name(
        Folders(cache=tmp_path, state=tmp_path, runtime=runtime, admission=runtime), "g0"
    ) as folder:
        registry.write_record(folder, RECORD)
        env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folders.runtime),
            "TESTBED_STATE": str(tmp_path),
            "_TESTBED_COMPLETE": "complete_bash",
            "COMP_WORDS": "testbed ssh g",
            "COMP_CWORD": "2",
        }
        words = [sys.executable, "-c", "import sys; sys.argv[0] = 'testbed'; from testbed.cli import main; main()"]
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
        )
        assert done.stdout.split() == ["g0"], done


@pytest.mark.parametrize("terminal", [False, True])
def test_logs_are_followed_until_their_guest_ends_and_steer_no_terminal(
    folders: Folders, tmp_path: Path, terminal: bool
) -> None:
    runtime = folders.runtime / "testbed"
    runtime.mkdir()
    log = tmp_path / "console.log"
    log.write_text("first\x1b[2J\n")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folders.runtime), "TESTBED_STATE": str(tmp_path)}
    ours, theirs = os.openpty() if terminal else os.pipe()
    with (
        registry.claim_name(
            Folders(cache=tmp_path, state=tmp_path, runtime=runtime, admission=runtime), "g0"
        ) as folder,
        subprocess.Popen(["cat"], stdin=-1) as guest,
    ):
        registry.write_record(folder, replace(RECORD, evidence=str(tmp_path), supervisor=guest.pid))
        words = [sys.executable, "-m", "testbed", "logs", "g0", "--follow"]
        with subprocess.Popen(words, env=env, stdout=theirs, cwd=Path(__file__).parents[3]) as followed:
            os.close(theirs)
            said = b""
            while b"first" not in said:
                said += os.read(ours, 1000)
            with log.open("a") as file:
                file.write("second\x1b]0;owned\x07\n")
            while b"second" not in said:
                said += os.read(ours, 1000)
            assert guest.stdin is not None
            guest.stdin.close()
            guest.wait()
            assert followed.wait(30) == 0
    os.close(ours)
    assert (b"\x1b" in said) is not terminal


def test_a_copy_by_scp_names_what_it_changes(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/file").write_text("all of it")
    other = tmp_path / "other"
    other.mkdir()
    (other / "link").symlink_to("file")
    (other / "dangling").symlink_to("nowhere")
    (other / "file").touch()
    os.truncate(other / "file", 1 << 20)
    words = [str(tmp_path / "plain"), str(other), "-r", str(tmp_path / "nowhere")]
    assert list(cli_vms._changed_by_scp(words)) == [
        f"{other}: scp copies what its 2 symbolic links lead to",
        f"{other}: scp fills the holes of 1 file with zeroes",
    ]
