"""How long a large topology takes from nothing to standing, beyond the commands that its guest must run."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from testbed import mounts
from testbed.lab import open_lab
from testbed.progress import Silent
from testbed.topology.load import parse

_DISKS = 16


def _topology() -> str:
    disks = "".join(f"      d{number}: {{type: virtio-blk, size: 512M}}\n" for number in range(_DISKS))
    loops = "".join(f"      l{number}: {{backing: d{number}/file, filesystem: ext4, size: 64M}}\n" for number in range(_DISKS))
    return f"version: 1\nguests:\n  g0:\n    disks:\n{disks}    loops:\n{loops}"


async def measure(*, count: int, kernel: str) -> dict[str, Any]:
    """Medians in seconds: a guest with 16 disks, with 16 filesystems, files and loops on them, and what of it is the steps in the guest."""
    model = parse(_topology(), "16 disks").guests["g0"]
    ready, steps, whole = [], [], []
    async with open_lab(Silent(), kernels=(kernel,)) as lab:
        files = await lab.kernel(kernel)
        await lab.prepare(model, files)
        for _ in range(count):
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                async with lab.guest("g0", model, files, Path(folder)) as guest:
                    ready.append(time.monotonic() - started)
                    made, _ = await mounts.build(guest)
                    whole.append(time.monotonic() - started)
                    assert len(made.loops) == _DISKS
                    # The one command in which all steps run and everything is read back.
                    steps.append(float(re.findall(r"^\[status 0, ([\d.]+) s\]$", (Path(folder) / "ssh.log").read_text(), re.MULTILINE)[-1]))
    beyond = [all_of_it - inside for all_of_it, inside in zip(whole, steps, strict=True)]
    return {
        "disks and loops": _DISKS,
        "guest ready, s": round(statistics.median(ready), 2),
        "steps in the guest, s": round(statistics.median(steps), 2),
        "whole, s": round(statistics.median(whole), 2),
        "beyond the steps, s": round(statistics.median(beyond), 2),
        "guests": count,
    }
