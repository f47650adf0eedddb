"""`tb`, where it cannot set up what it needs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

TB = Path(__file__).parents[2] / "tb"


def tb(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TB, "ps"], env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


def test_a_python_that_is_none_is_named(tmp_path: Path) -> None:
    done = tb(TESTBED_CACHE=str(tmp_path), TESTBED_PYTHON="/bin/true")
    assert done.returncode == 2
    assert done.stderr == "tb: TESTBED_PYTHON=/bin/true: expected a Python 3.11 or later with venv\n"


@pytest.mark.parametrize("lock", [False, True])
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, lock: bool) -> None:
    """`lock`: the folder is there, and nothing can be made in it."""
    cache = Path("/proc/self") if lock else tmp_path / "file/cache"
    (tmp_path / "file").touch()
    done = tb(TESTBED_CACHE=str(cache))
    assert done.returncode == 2
    assert done.stderr == f"tb: {cache}: expected a folder that can be written to; name another with TESTBED_CACHE\n"


@pytest.mark.slow
def test_an_interrupt_of_the_setting_up_says_so(tmp_path: Path) -> None:
    setting_up = subprocess.Popen([TB, "ps"], env={**os.environ, "TESTBED_CACHE": str(tmp_path)}, stderr=subprocess.PIPE, process_group=0)
    assert setting_up.stderr is not None and b"installing Python packages" in setting_up.stderr.readline()
    time.sleep(0.2)  # wherever it is by then
    os.killpg(setting_up.pid, signal.SIGINT)
    said = setting_up.communicate(timeout=60)[1]
    assert setting_up.returncode == 130 and b"tb: stopped by SIGINT; the next ./tb goes on with setting up" in said.splitlines()
    assert not list(tmp_path.glob("venv-*/complete"))
