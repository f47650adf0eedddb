"""The log files of one start of a guest: moved aside before the next try, or copied to the runs."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from testbed.errors import HostError
from testbed.host import paths
from testbed.progress import Progress

# What a guest writes into its log folder.
_LOG_FILES = (
    "argv.txt",
    "console.log",
    "qemu.log",
    "qmp.jsonl",
    "ssh.log",
    "dmesg.txt",
    "stages.jsonl",
    "timeline.jsonl",
    "samples.jsonl",
    "cgroups.jsonl",
)


def set_aside(logs: Path) -> str:
    """Move the logs of a start that failed into a folder of their own; returns where they are, for a message, or
    nothing.
    """
    files = [logs / name for name in _LOG_FILES if (logs / name).exists()]
    if not files:
        return ""
    folder = logs / "failed-start"
    folder.mkdir(exist_ok=True)
    for log in files:
        log.replace(folder / log.name)
    return f"; the logs of what failed: {folder}"


def keep_template_logs(logs: Path, runs: Path, progress: Progress) -> None:
    """Copy the logs of a template that did not boot into a new run folder: the folder that it is made in is removed."""
    with contextlib.suppress(OSError, HostError):  # the disk is full
        kept = paths.new_run_folder(runs) / "template"
        shutil.copytree(logs, kept, ignore=lambda _, names: [name for name in names if name not in _LOG_FILES])
        progress.note(f"the logs of the template: {kept}")
