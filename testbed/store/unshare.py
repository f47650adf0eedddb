"""Runs a program in its own PID and mount namespaces, so that it dies with the testbed and its mounts stay private.

Without root the program also gets a user namespace, in which the user is root and has its subordinate ids (subuid(5));
files that belong to these ids are removed by another such program.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from testbed.errors import ToolMissing
from testbed.host import process

# Where the program sees its folder. Every user can enter it, which may not hold for the folder's own path; Debian has
# this folder, and programs need nothing that is in it.
HERE = Path("/mnt")
_APART = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL", "--")
# Mounts the folder, then runs the program as the first process of its namespace: the kernel ends all others with it.
_MOUNTED = ("sh", "-ec", 'mount --bind "$0" "$1"; cd "$1"; shift; exec "$@"')


def command_prefix(folder: Path) -> tuple[str, ...]:
    """Return what to put before a program that works in `folder`, which it sees as `HERE`."""
    # The parent-death signal is set again: becoming root clears it, and unshare(1) can only send KILL itself.
    return (*_as_root(), *process.death_signal_prefix("KILL"), *_APART, *_MOUNTED, str(folder), str(HERE))


async def why_unavailable() -> str:
    """Return why this machine cannot run a program so; an empty string if it can."""
    tried = await process.run([*_as_root(), *_APART, "true"], check=False)
    return "" if tried.status == 0 else tried.stderr.strip() or f"unshare ended with status {tried.status}"


def remove(folder: Path) -> bool:
    """Remove what such a program may have left, also files of subordinate ids; tell whether the folder is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists() and os.geteuid() != 0:
        with contextlib.suppress(ToolMissing, OSError):
            removing = (*_as_root(), "rm", "-rf", "--", str(folder))
            subprocess.run(removing, check=False, capture_output=True)  # noqa: S603 - our argv
    return not folder.exists()


def _as_root() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else (str(process.find("unshare")), "--user", "--map-root-user", "--map-auto", "--")
