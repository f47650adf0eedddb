"""Times validating a large matrix, and planning a guest."""

from __future__ import annotations

import time
from typing import Any

from testbed.guest.setup import block_stack, cgroups
from testbed.host import tempdirs
from testbed.topology import load_points

# 2 x 4 x 2 x 5 x 5 x 5 x 5 = 10,000 points.
_MATRIX = """\
version: 1
matrix:
  axes:
    disk: [virtio-blk, nvme]
    filesystem: [ext4, xfs, btrfs, tmpfs]
    direct: [true, false]
    size: [64M, 65M, 66M, 67M, 68M]
    cpus: [1, 2, 3, 4, 5]
    memory: [1G, 2G, 3G, 4G, 5G]
    queues: [1, 2, 3, 4, 5]
guests:
  g0:
    memory: ${memory}
    cpus: ${cpus}
    disks: {data: {type: "${disk}", size: 1G, queues: "${queues}"}}
    filesystems: {store: {type: "${filesystem}", device: data}}
    loops:
      l0: {backing: store/disk.img, size: "${size}", direct-io: "${direct}"}
      l1: {backing: l0}
    cgroups: {tenant: {memory.max: 64M, io.max: {data: {rbps: 2M}}}}
"""


def measure(plans: int) -> dict[str, Any]:
    """Return the seconds for all points, and the milliseconds for one plan of a stack and its cgroups."""
    with tempdirs.temporary() as folder:
        file = folder / "matrix.yaml"
        file.write_text(_MATRIX, encoding="utf-8")
        started = time.monotonic()
        points = load_points(file)
        validated = time.monotonic() - started
    guest = next(iter(points.values())).guests["g0"]
    started = time.monotonic()
    for _ in range(plans):
        cgroups.plan_cgroups(guest, block_stack.plan_stack(guest, {"data": "/dev/vdc"}).devices)
    planned = (time.monotonic() - started) / plans
    return {"points": len(points), "validated_s": round(validated, 2), "plan_ms": round(planned * 1000, 3)}
