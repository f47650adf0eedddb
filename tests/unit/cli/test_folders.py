"""Commands where the folders of the testbed cannot be used."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.host import paths
from tests.support.command import testbed

ROOT = Path(__file__).parents[3]


def test_the_message_on_an_unwritable_cache_names_it_and_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = testbed(tmp_path, "kernel", "list", TESTBED_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 2
    assert "cannot be made" in done.stderr and "TESTBED_CACHE" in done.stderr


@pytest.mark.slow
def test_an_unreachable_mirror_is_one_message_and_leaves_no_partial_files(tmp_path: Path) -> None:
    done = testbed(tmp_path, "compare", TESTBED_DEBIAN_MIRROR="http://127.0.0.1:9/debian")
    assert done.returncode == 2
    assert "127.0.0.1" in done.stderr and "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".unfinished")]
    assert not list((tmp_path / "cache").rglob("meta.json"))


def test_commands_that_only_read_need_no_folder_for_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file/state")
    for words, status, said in (
        (("ps",), 0, "no guests"),
        (("runs",), 0, "0 runs"),
        (("report",), 2, "there is none"),
        (("gc",), 0, ""),
    ):
        done = testbed(tmp_path, *words, TESTBED_STATE=nowhere)
        assert done.returncode == status and said in done.stderr, (words, done)


def test_a_state_folder_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    env = {**os.environ, "TESTBED_CACHE": str(tmp_path), "TESTBED_STATE": "/dev/null"}
    done = subprocess.run([sys.executable, "-m", "testbed", "runs"], env=env, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr
        == "testbed: /dev/null: expected a folder, got something else; name another with TESTBED_STATE\n"
    )


def test_without_HOME_the_accounts_home_is_used(tmp_path: Path) -> None:
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3])}
    code = "from testbed.host import paths; print(paths.cache_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert Path(done.stdout.strip()) == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "testbed"


def test_an_unknown_account_needs_HOME(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "TESTBED_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        HostError, match=r"uid \d+ has no home on this machine; set HOME, or TESTBED_CACHE and TESTBED_STATE"
    ):
        paths.folders()
