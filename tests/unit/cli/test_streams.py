"""Output that cannot be written, and text that looks like markup."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.cli.app import err

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_exit_codes_do_not_depend_on_closed_output_streams(tmp_path: Path, closed: str) -> None:
    env = {**os.environ, "TESTBED_CACHE": str(tmp_path / "c"), "TESTBED_STATE": str(tmp_path / "s")}
    for words, status in (("validate topologies/default.yaml", 0), ("validate nope.yaml", 1), ("ssh nobody", 2)):
        done = subprocess.run(
            ["sh", "-c", f'"$0" -m testbed {words} {closed}', sys.executable], env=env, cwd=ROOT, capture_output=True
        )
        assert done.returncode == status and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("scenarios --markdown >/dev/full", 2, "testbed: what it prints cannot be written: No space left on device\n"),
        ("errors nope 2>/dev/full", 2, ""),
        ("scenarios --markdown >&5", 141, ""),
        ("errors TB100 >&5", 141, ""),
        ("errors nope 2>&5", 141, ""),
    ],
)
def test_a_failed_write_of_the_output_sets_the_exit_code(tmp_path: Path, words: str, status: int, said: str) -> None:
    """5: a pipe whose reader has gone."""
    env = {**os.environ, "TESTBED_CACHE": str(tmp_path / "c"), "TESTBED_STATE": str(tmp_path / "s")}
    reader, pipe = os.pipe()
    os.close(reader)
    with os.fdopen(pipe, "wb"):
        script = f'exec 5>&{pipe}; "$0" -m testbed {words}'
        done = subprocess.run(
            ["bash", "-c", script, sys.executable], env=env, cwd=ROOT, capture_output=True, pass_fds=(pipe,)
        )
    assert (done.returncode, done.stderr.decode()) == (status, said)


def test_text_that_looks_like_markup_is_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    err.print("a:b:c [media] x", markup=False, highlight=False, soft_wrap=True)
    assert capsys.readouterr().err == "a:b:c [media] x\n"
