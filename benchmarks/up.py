"""How long `testbed up` of a large topology takes, beyond the commands that its guest must run."""

from __future__ import annotations

import json
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_DISKS = 16
_TESTBED = (sys.executable, "-m", "testbed")


def _topology() -> str:
    disks = "".join(f"      d{number}: {{type: virtio-blk, size: 512M}}\n" for number in range(_DISKS))
    loops = "".join(f"      l{number}: {{backing: d{number}/file, filesystem: ext4, size: 64M}}\n" for number in range(_DISKS))
    return f"version: 1\nguests:\n  g0:\n    disks:\n{disks}    loops:\n{loops}"


def measure(*, count: int, kernel: str) -> dict[str, Any]:
    """Medians in seconds of the whole command, from its start to its end: a guest with 16 disks, and 16 filesystems, files and loops on
    them; and what of it is the steps in the guest, which is one command there that also reads everything back.
    """
    wholes, steps = [], []
    name = f"bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "disks.yaml"
        file.write_text(_topology())
        # The first one makes what is missing of kernel and template, and is not counted.
        for number in range(count + 1):
            started = time.monotonic()
            said = _run("up", str(file), "--name", name, "--kernel", kernel, "--json", "--quiet")
            whole = time.monotonic() - started
            try:
                (record,) = json.loads(said)
                assert len([loop for loop in record["loops"] if loop in record["devices"]]) == _DISKS, record
                log = (Path(record["evidence"]) / "ssh.log").read_text()
            finally:
                _run("down", name)
            if number:
                wholes.append(whole)
                steps.append(float(re.findall(r"^\[status 0, ([\d.]+) s\]$", log, re.MULTILINE)[-1]))
    beyond = [whole - inside for whole, inside in zip(wholes, steps, strict=True)]
    return {
        "disks and loops": _DISKS,
        "whole command, s": round(statistics.median(wholes), 2),
        "steps in the guest, s": round(statistics.median(steps), 2),
        "beyond the steps, s": round(statistics.median(beyond), 2),
        "beyond the steps, least and most, s": [round(min(beyond), 2), round(max(beyond), 2)],
        "guests": count,
    }


def _run(*words: str) -> str:
    return subprocess.run([*_TESTBED, *words], stdout=subprocess.PIPE, text=True, check=True).stdout
