"""Uses the testbed at random for long, in one process, and checks that what it holds does not grow."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed.errors import GuestLost, TestbedError, WireBroken
from testbed.guest.factory import GuestFactory, open_factory
from testbed.host import paths, quota, tempdirs
from testbed.progress import Silent
from testbed.scenarios import runner
from testbed.scenarios.catalogue import select
from testbed.scenarios.runner import Job
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel, disks, load
from tests.support import places
from tests.support.places import Places

# By then everything that is loaded or grown once has been.
_WARM_UP = 12
_TOPOLOGY = "version: 1\nguests:\n  tiny: {cpus: 1, memory: 256M}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What this process holds: its own resident memory, open files, children, tasks, and bytes in its scratch folders.

    Resident memory includes free memory that the allocators keep. In use are blocks of Python's allocator, and bytes of
    the C library's (`mallinfo2`, glibc 2.33 or newer).
    """

    memory_bytes: int
    python_blocks: int
    malloc_bytes: int
    files: int
    processes: int
    tasks: int
    disk_bytes: int


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _malloced() -> int:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo2
    said = libc.mallinfo2()
    return int(said.uordblks) + int(said.hblkhd)


def what_is_held(factory: GuestFactory) -> Held:
    """Measure now, between two rounds, after collecting garbage."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    return Held(
        memory_bytes=int(status["RssAnon"].split()[0]) * 1024,
        python_blocks=sys.getallocatedblocks(),
        malloc_bytes=_malloced(),
        files=len(list(Path("/proc/self/fd").iterdir())),
        processes=len(children),
        tasks=len(asyncio.all_tasks()),
        disk_bytes=quota.bytes_taken(factory.folders.scratch) + quota.bytes_taken(factory.folders.runtime),
    )


def age_names() -> None:
    """Grow Python's table of interned names to the size that it has in a long run; otherwise it doubles once, after an
    hour or so.

    Each new name takes an entry, even if it is freed again; when none is left the table is rebuilt with room for three
    times its names. A round takes about twelve, so that there was one step of 964,320 bytes after 1300 rounds.
    """
    for number in range(1 << 18):
        sys.intern(f"a name that nobody keeps, {number}")


class Soak:
    """The rounds. Each leaves only its logs, which are removed."""

    def __init__(
        self, factory: GuestFactory, kernel: KernelFiles, chance: random.Random, folder: Path, own: Places
    ) -> None:
        self._factory, self._kernel, self._chance, self._folder, self._own = factory, kernel, chance, folder, own
        self.rounds: dict[str, Callable[[Path], Awaitable[None]]] = {
            "clone": self._clone,
            "clones at once": self._clones,
            "scenario": self._scenario,
            "panic": self._panic,
            "QEMU killed": self._killed,
            "QEMU stopped": self._stopped,
            "SSH dropped": self._dropped,
            "cancelled": self._cancelled,
            "command killed": self._command,
        }

    async def round(self) -> str:
        """Run a random round; return its name."""
        name = self._chance.choice(tuple(self.rounds))
        with tempfile.TemporaryDirectory(dir=self._folder) as evidence:
            await self.rounds[name](Path(evidence) / "guest")
        return name

    def _guest(self, evidence: Path) -> Any:
        kind = self._chance.choice(("virtio-blk", "nvme", "virtio-scsi"))
        model = GuestModel(cpus=1, memory=512 << 20, disks={"data": disks.make_disk(type=kind, size=64 << 20)})
        return self._factory.guest("g0", model, self._kernel, evidence)

    async def _clone(self, evidence: Path) -> None:
        async with self._guest(evidence) as guest:
            await guest.script(
                'dd if=/dev/zero of="$1" bs=1M count=8 oflag=direct status=none', guest.disks["data"].path
            )

    async def _clones(self, evidence: Path) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(self._clone(evidence / str(number)))

    async def _scenario(self, evidence: Path) -> None:
        (case,) = select(("gate",), quick=True)
        model = load(paths.shipped("topologies") / "default.yaml").guests["g0"]
        job = Job(
            factory=self._factory,
            cases=(case,),
            model=model,
            kernels={"kernel": self._kernel},
            folder=evidence,
            on_step=lambda case, side, step: None,
            on_result=lambda result: None,
        )
        await runner.run(job, runner.judge_each({"kernel": runner.expected_of(self._kernel)}))

    async def _panic(self, evidence: Path) -> None:
        with contextlib.suppress(GuestLost):
            async with self._guest(evidence) as guest:
                await guest.script("(echo c >/proc/sysrq-trigger) & sleep 600", timeout_s=600)

    async def _killed(self, evidence: Path) -> None:
        with contextlib.suppress(TestbedError):
            async with self._guest(evidence) as guest:
                os.kill(guest.pid, signal.SIGKILL)
                await guest.run("true")

    async def _stopped(self, evidence: Path) -> None:
        async with self._guest(evidence) as guest:
            os.kill(guest.pid, signal.SIGSTOP)
            await asyncio.sleep(self._chance.uniform(0, 2))
            os.kill(guest.pid, signal.SIGCONT)
            await guest.run("true")

    async def _dropped(self, evidence: Path) -> None:
        async with self._guest(evidence) as guest:
            with contextlib.suppress(WireBroken):
                await guest.script("kill -9 $PPID; sleep 600")
            await guest.run("true")

    async def _cancelled(self, evidence: Path) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._chance.uniform(0, 1.5)):
                await self._clone(evidence)

    async def _command(self, evidence: Path) -> None:
        del evidence
        self._own.file("tiny.yaml", _TOPOLOGY)
        started = await self._own.start("up", "tiny.yaml", "-q")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(started.wait(), self._chance.uniform(0, 3))
        self._own.kill(started.pid)
        await started.communicate()
        await self._own.run("down", "--all", status=None)
        await self._own.nothing_left()


# Allowed growth from the second third of a run to the last one. Garbage is not counted, but caches of libraries fill
# gradually; and resident memory includes what the allocators keep.
_FLAT_SHARE = {
    "memory_bytes": 0.05,
    **dict.fromkeys(("python_blocks", "malloc_bytes", "files", "processes", "tasks", "disk_bytes"), 0.01),
}


def growing(kept: Sequence[Held]) -> tuple[str, ...]:
    """Describe what has grown: the mean of the last third of a run beside that of the second. `kept`: three or more."""
    third = len(kept) // 3
    said = []
    for name, flat in _FLAT_SHARE.items():
        before, after = (
            statistics.fmean(getattr(one, name) for one in some)
            for some in (kept[third : 2 * third], kept[2 * third :])
        )
        if after > before * (1 + flat):
            said.append(f"{name}: {before:.1f} in the second third, {after:.1f} in the last")
    return tuple(said)


async def measure(*, minutes: float, seed: int, kernel: str) -> dict[str, Any]:
    """Run rounds until the time is over. `growing`: what has grown.

    `after the warm-up`, `at the end`, `most`: what the process held between rounds.
    """
    chance = random.Random(seed)
    until = time.monotonic() + minutes * 60
    rounds = Counter[str]()
    # Neither whole commands nor this process may leave anything in their folders.
    with (
        places.made() as own,
        places.made() as ours,
        tempdirs.temporary() as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8") as samples,
    ):
        os.environ.update(
            {
                name: ours.env[name]
                for name in ("TESTBED_CACHE", "TESTBED_STATE", "XDG_RUNTIME_DIR", "TESTBED_ADMISSION")
            }
        )
        async with open_factory(Silent(), kernels=(kernel,)) as factory:
            soak = Soak(factory, await factory.kernel(kernel), chance, folder, own)
            while time.monotonic() < until or rounds.total() <= _WARM_UP + 3:
                rounds[await soak.round()] += 1
                if rounds.total() == _WARM_UP:
                    age_names()
                # Not kept in memory, since memory is measured.
                samples.write(json.dumps(asdict(what_is_held(factory))) + "\n")
        samples.seek(0)
        kept = [Held(**json.loads(line)) for line in samples][_WARM_UP:]
    return {
        "minutes": minutes,
        "seed": seed,
        "rounds": rounds.total(),
        "of each": dict(rounds),
        "growing": growing(kept),
        "after the warm-up": _shown(kept[0]),
        "at the end": _shown(kept[-1]),
        "by tenths": {
            name: [_shown(kept[number * (len(kept) - 1) // 10])[name] for number in range(11)]
            for name in ("memory, MB", "of malloc in use, MB", "of Python in use, blocks")
        },
        "most": {name: max(_shown(one)[name] for one in kept) for name in _shown(kept[0])},
    }


def _shown(one: Held) -> dict[str, Any]:
    return {
        "memory, MB": round(one.memory_bytes / 1e6, 1),
        "of malloc in use, MB": round(one.malloc_bytes / 1e6, 2),
        "of Python in use, blocks": one.python_blocks,
        "files": one.files,
        "processes": one.processes,
        "tasks": one.tasks,
        "disk, KB": one.disk_bytes // 1000,
    }
