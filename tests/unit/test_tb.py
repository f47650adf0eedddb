"""Checks `tb`: its errors when it cannot set up what it needs, and that its cache is private."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

TB = Path(__file__).parents[2] / "tb"


def tb(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TB, "ps"], env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


def test_an_unusable_python_is_named(tmp_path: Path) -> None:
    done = tb(TESTBED_CACHE=str(tmp_path), TESTBED_PYTHON="/bin/true")
    assert done.returncode == 2
    assert done.stderr == "tb: TESTBED_PYTHON=/bin/true: expected a Python 3.11 or later with venv\n"


@pytest.mark.parametrize("lock", [False, True])
def test_an_unwritable_cache_is_named(tmp_path: Path, lock: bool) -> None:
    """`lock`: the folder exists, but nothing can be created in it."""
    cache = Path("/proc/self") if lock else tmp_path / "file/cache"
    (tmp_path / "file").touch()
    done = tb(TESTBED_CACHE=str(cache))
    assert done.returncode == 2
    assert done.stderr == f"tb: {cache}: expected a folder that can be written to; name another with TESTBED_CACHE\n"


def test_a_new_cache_is_private(tmp_path: Path) -> None:
    cache = tmp_path / "new/cache"
    tb(TESTBED_CACHE=str(cache), TESTBED_PYTHON="/bin/true")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (cache, cache.parent)] == [0o700, 0o700]


def test_a_readable_cache_of_an_older_version_is_made_private(tmp_path: Path) -> None:
    cache = tmp_path / "testbed"
    cache.mkdir()
    cache.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "TESTBED_CACHE"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "TESTBED_PYTHON": "/bin/true"}
    subprocess.run([TB, "ps"], env=environment, capture_output=True, check=False)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o1777, 0o775, 0o772])
def test_a_cache_that_others_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    done = tb(TESTBED_CACHE=str(tmp_path))
    tmp_path.chmod(0o700)
    assert done.returncode == 2 and f"expected a folder that only you may write to, got mode {mode:o}" in done.stderr


def test_modules_in_the_current_folder_are_not_run(tmp_path: Path) -> None:
    """A user may `cd` into a stranger's folder and run `tb` there for the first time."""
    folder, ran = tmp_path / "sent", tmp_path / "ran"
    folder.mkdir()
    for name in ("venv", "ensurepip", "json", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\n")
    python = tmp_path / "python"  # without pip, which would be downloaded
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *" venv "*) set -- "$@" --without-pip ;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "TESTBED_CACHE": str(tmp_path / "cache"), "TESTBED_PYTHON": str(python)}
    done = subprocess.run(
        [TB, "ps"], env=environment, capture_output=True, text=True, timeout=120, cwd=folder, check=False
    )
    assert done.returncode == 2 and "the Python packages could not be installed" in done.stderr, done.stderr
    assert (tmp_path / "cache").is_dir() and not ran.exists()


def test_a_cache_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    public = tmp_path / "for all"
    public.mkdir()
    for mode, said in (
        (0o777, f"{public}: expected a folder in which others cannot put another cache"),
        (0o1777, "TESTBED_PYTHON=/bin/true"),
    ):
        public.chmod(mode)
        done = tb(TESTBED_CACHE=str(public / "mine/cache"), TESTBED_PYTHON="/bin/true")
        assert done.returncode == 2 and said in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_users_cache_is_refused() -> None:
    """Run as a plain user, who gets the script on standard input because he may not enter our checkout."""
    script = TB.read_text()
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-s", "ps"]
    plain = script.replace("ensure_packages\nensure_subordinate_ids\n", "")  # which would ask for root
    assert plain != script
    with tempfile.TemporaryDirectory(dir="/tmp") as cache:
        os.chown(cache, 12345, 12345)
        environment = {**os.environ, "TESTBED_CACHE": cache, "HOME": "/nonexistent"}
        done = subprocess.run(words, input=plain, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 2 and "expected a folder of yours, got one of uid 12345" in done.stderr, done.stderr


@pytest.mark.slow
def test_an_interrupted_setup_says_so(tmp_path: Path) -> None:
    setting_up = subprocess.Popen(
        [TB, "ps"], env={**os.environ, "TESTBED_CACHE": str(tmp_path)}, stderr=subprocess.PIPE, process_group=0
    )
    assert setting_up.stderr is not None and b"installing Python packages" in setting_up.stderr.readline()
    (lock,) = tmp_path.glob("venv-*.lock")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600, "nobody else can hold it"
    time.sleep(0.2)  # at an arbitrary point
    with subprocess.Popen(
        [TB, "ps"], env={**os.environ, "TESTBED_CACHE": str(tmp_path)}, stderr=subprocess.PIPE, process_group=0
    ) as other:
        assert other.stderr is not None
        waits = other.stderr.readline().decode()
        assert re.fullmatch(
            r"tb: waiting for pid \d+ of \S+, since \d{4}-.*, which installs into \S+/venv-\w+\n", waits
        ), waits
        os.killpg(other.pid, signal.SIGKILL)
    os.killpg(setting_up.pid, signal.SIGINT)
    said = setting_up.communicate(timeout=60)[1]
    assert (
        setting_up.returncode == 130
        and b"tb: stopped by SIGINT; the next ./tb goes on with setting up" in said.splitlines()
    )
    assert not list(tmp_path.glob("venv-*/complete"))
