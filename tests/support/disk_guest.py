"""A guest with a disk of each kind, and what tests of its disks measure."""

import json
import time
from pathlib import Path

from testbed.guest.guest import Guest
from testbed.topology import GuestModel

MODEL = GuestModel.model_validate(
    {
        "disks": {
            "virtio": {"type": "virtio-blk", "size": "64M"},
            "nvme": {"type": "nvme", "size": "64M"},
            "scsi": {"type": "virtio-scsi", "size": "64M"},
            "nowhere": {"type": "virtio-blk", "size": "64M", "format": "null-co"},
            "copied": {"type": "virtio-blk", "size": "64M", "format": "qcow2"},
            "strict": {"type": "virtio-blk", "size": "64M", "werror": "stop"},
            "shared": {"type": "virtio-blk", "size": "64M", "throttle-group": "both"},
        },
        "throttle-groups": {"both": {"iops-total": 1000}},
    }
)


async def dd(guest: Guest, *words: str) -> int:
    return (await guest.run("dd", "bs=4k", *words, check=False)).status


async def reads(guest: Guest, name: str, count: int) -> float:
    """Seconds that so many requests, one after the other, take."""
    started = time.monotonic()
    assert await dd(guest, f"if={guest.disks[name].path}", "of=/dev/null", f"count={count}", "iflag=direct") == 0
    return time.monotonic() - started


async def nodes(guest: Guest) -> set[str]:
    found = await guest.monitor.execute("query-named-block-nodes", {"flat": True})
    return {node["node-name"] for node in found}


def injected(logs: Path, name: str) -> list[str]:
    log = logs / f"export-{name}.jsonl"
    lines = log.read_text().splitlines() if log.exists() else ()
    return [json.loads(line)["effect"] for line in lines]
