"""Runs a Python program with and without confinement by `jail_exec.py`, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from testbed.qemu import jail, jail_exec
from tests.support.values import qemu

PROGRAMS = (*jail.landlock_rules(qemu()), (jail_exec.RUN, sys.base_prefix))


def since(landlock: int) -> pytest.MarkDecorator:
    have = jail_exec.landlock_abi()
    return pytest.mark.skipif(
        have < landlock, reason=f"this kernel's Landlock has come to version {have}, not to {landlock}"
    )


TOUCH = shutil.which("touch") or ""
# What the programs have: calls that Python has no name for, with their errors.
TOOLS = f"""
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
parent = {os.getpid()}
def asked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
"""


def tried(
    code: str, *rules: tuple[str, str], mount_ns: list[str] | None = None, confined: bool = True, cwd: str | None = None
) -> tuple[str, str]:
    """Run Python code unconfined and confined; returns the output of each: `done`, or the name of the error."""
    program = f"{TOOLS}try:\n    {code}\nexcept OSError as error: print(type(error).__name__)\nelse: print('done')"
    kept = jail_exec.command_prefix(sys.executable, (*PROGRAMS, *rules) if confined else None, mount_ns=mount_ns)
    before, after = (
        subprocess.run(
            [*within, sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False, cwd=cwd
        )
        for within in ((), kept)
    )
    assert before.returncode == 0 == after.returncode, before.stderr + after.stderr
    return before.stdout.strip(), after.stdout.strip()
