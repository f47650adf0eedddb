"""Times `testbed up` of a large topology, with and without the commands in its guest."""

from __future__ import annotations

import json
import re
import secrets
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import children
from testbed.host import tempdirs

_DISKS = 16


def _topology() -> str:
    disks = "".join(f"      d{number}: {{type: virtio-blk, size: 512M}}\n" for number in range(_DISKS))
    loops = "".join(
        f"      l{number}: {{backing: d{number}/file, filesystem: ext4, size: 64M}}\n" for number in range(_DISKS)
    )
    return f"version: 1\nguests:\n  g0:\n    disks:\n{disks}    loops:\n{loops}"


async def measure(*, count: int, kernel: str) -> dict[str, Any]:
    """Return medians in seconds of the whole command, for a guest with 16 disks, and 16 filesystems, files and loops on
    them; and the time of commands in the guest: the agent's listing of the disks, which waits until the kernel has
    found all of them, and the one command that runs all steps and reads everything back.
    """
    wholes, listings, steps = [], [], []
    name = f"bench-{secrets.token_hex(4)}"
    with tempdirs.temporary() as folder:
        file = folder / "disks.yaml"
        file.write_text(_topology(), encoding="utf-8")
        # The first one makes a missing kernel and template, and is not counted.
        for number in range(count + 1):
            started = time.monotonic()
            said = await _run("up", str(file), "--name", name, "--kernel", kernel, "--json", "--quiet")
            whole = time.monotonic() - started
            try:
                (record,) = json.loads(said)
                assert len([loop for loop in record["loops"] if loop in record["devices"]]) == _DISKS, record
                evidence = Path(record["evidence"])
                log = (evidence / "ssh.log").read_text(encoding="utf-8")
                stages = {
                    one["event"]: one["monotonic_s"]
                    for one in map(json.loads, (evidence / "stages.jsonl").read_text(encoding="utf-8").splitlines())
                }
            finally:
                await _run("down", name)
            if number:
                wholes.append(whole)
                listings.append(stages["DEVICES_VERIFIED"] - stages["IDENTIFIED"])
                steps.append(float(re.findall(r"^\[status 0, ([\d.]+) s\]$", log, re.MULTILINE)[-1]))
    beyond = [whole - listing - inside for whole, listing, inside in zip(wholes, listings, steps, strict=True)]
    return {
        "disks and loops": _DISKS,
        "whole command, s": round(statistics.median(wholes), 2),
        "steps in the guest, s": round(statistics.median(steps), 2),
        "listing of the disks in the guest, s": round(statistics.median(listings), 2),
        "beyond both, s": round(statistics.median(beyond), 2),
        "beyond both, least and most, s": [round(min(beyond), 2), round(max(beyond), 2)],
        "guests": count,
    }


async def _run(*words: str) -> str:
    return await children.output("testbed", *words)
