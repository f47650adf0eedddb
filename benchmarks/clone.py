"""Times clones, cold boots and virtme-ng in one run, on the default topology with both its disks hot-plugged."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import virtme
from testbed.guest.factory import GuestFactory, open_factory
from testbed.guest.lifecycle import Event
from testbed.host import paths, tempdirs
from testbed.report import live
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel, load
from testbed.units import MIB

_PARTS = (
    ("QEMU's monitor", Event.SPAWNED, Event.MONITOR_CONNECTED),
    ("load the state", Event.MONITOR_CONNECTED, Event.AGENT_WAITING),
    ("plug, identify, list the disks", Event.AGENT_WAITING, Event.DEVICES_VERIFIED),
    ("rest of the SSH handshake", Event.DEVICES_VERIFIED, Event.SSH_CONNECTED),
)
_FIRST_COMMAND = "first command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One guest: seconds from the call to the first answered command, their parts, and QEMU's private memory then."""

    total_s: float
    parts_s: dict[str, float]
    private_bytes: int


async def _one(factory: GuestFactory, model: GuestModel, kernel: KernelFiles, evidence: Path) -> Sample:
    started = time.monotonic()
    async with factory.guest("bench", model, kernel, evidence) as guest:
        await guest.run("true")
        answered = time.monotonic()
        parts_s = {name: guest.reached[end] - guest.reached[begin] for name, begin, end in _PARTS}
        parts_s[_FIRST_COMMAND] = answered - guest.reached[Event.SSH_CONNECTED]
        return Sample(total_s=answered - started, parts_s=parts_s, private_bytes=_private(guest.pid))


def _private(pid: int) -> int:
    """Return a process's resident memory that is not shared: anonymous pages, among them copied ones of the template's
    RAM.

    Not `Private_Dirty`: that includes pages of the template's file which only one clone has mapped and which wait for
    writeback.
    """
    found = re.search(
        r"^Anonymous:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return int(found[1]) * 1024


async def measure(*, count: int, cold: int, kernel: str) -> dict[str, Any]:
    """Return the figures; times in seconds, memory in MiB."""
    model = load(paths.shipped("topologies") / "default.yaml").guests["g0"]
    with live.progress(Console(stderr=True)) as progress, tempdirs.temporary() as folder:
        async with open_factory(progress, kernels=(kernel,)) as factory:
            files = await factory.kernel(kernel)
            await _one(factory, model, files, folder)  # makes a missing template
            with progress.task(f"{count} clones") as task:
                warm = []
                for number in range(count):
                    warm.append(await _one(factory, model, files, folder))
                    task.update(fraction=(number + 1) / count)
            factory.cold = True
            with progress.task(f"{cold} cold boots"):
                booted = [await _one(factory, model, files, folder) for _ in range(cold)]
            virtme_s = await virtme.measure(factory.folders.cache, progress)
    times = sorted(sample.total_s for sample in warm)
    median_s = statistics.median(times)
    cold_s = statistics.median(sample.total_s for sample in booted)
    parts = {name: round(statistics.median(sample.parts_s[name] for sample in warm), 3) for name in warm[0].parts_s}
    return {
        "kernel": files.release,
        "clones": count,
        "median_s": round(median_s, 3),
        "p95_s": round(times[min(count - 1, int(count * 0.95))], 3),
        "cold_s": round(cold_s, 3),
        "cold_over_clone": round(cold_s / median_s, 1),
        "parts_s": parts,
        "largest_part": max(parts, key=lambda name: parts[name]),
        "private_mib": round(statistics.median(sample.private_bytes for sample in warm) / MIB, 1),
        "virtme_ng_s": virtme_s,
    }
