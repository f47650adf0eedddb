"""A program whose processes all end with the testbed, however that ends, and whose mounts are nobody else's: in namespaces of its own.

Without root it is a user's namespace, in which the user is root and has its subordinate ids (subuid(5)); files of these are removed by
another such program.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from testbed.errors import ToolMissing
from testbed.host import process

# Where such a program sees its folder, which everybody may enter, wherever that is: Debian has it, and nothing that programs need is there.
HERE = Path("/mnt")
_APART = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL", "--")
# The one mount that it begins with; then the program is the first process of its namespace, with which the kernel ends all others.
_MOUNTED = ("sh", "-ec", 'mount --bind "$0" "$1"; cd "$1"; shift; exec "$@"')


def command_prefix(folder: Path) -> tuple[str, ...]:
    """What to put before a program that works in `folder`, which it sees as `HERE`."""
    # The parent-death signal once more: becoming root takes it away, and unshare(1) hands on no other than this one.
    return (*_as_root(), *process.death_signal_prefix("KILL"), *_APART, *_MOUNTED, str(folder), str(HERE))


async def why_unavailable() -> str:
    """Why there can be no such program on this machine; nothing where there can."""
    tried = await process.run([*_as_root(), *_APART, "true"], check=False)
    return "" if tried.status == 0 else tried.stderr.strip() or f"unshare ended with status {tried.status}"


def remove(folder: Path) -> bool:
    """Remove what such a program may have left, whoever of its users it belongs to; whether it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists() and os.geteuid() != 0:
        with contextlib.suppress(ToolMissing, OSError):
            removing = (*_as_root(), "rm", "-rf", "--", str(folder))
            subprocess.run(removing, check=False, capture_output=True)  # noqa: S603 - the words are ours
    return not folder.exists()


def _as_root() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else (str(process.find("unshare")), "--user", "--map-root-user", "--map-auto", "--")
