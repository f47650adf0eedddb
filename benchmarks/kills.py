"""Kills commands at random moments, one after the other, and lists what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from tests.support import places

_TOPOLOGY = "version: 1\nguests:\n  tiny: {cpus: 1, memory: 256M, disks: {data: {type: virtio-blk, size: 64M}}}\n"
COMMANDS: dict[str, tuple[str, ...]] = {
    "up": ("up", "tiny.yaml", "-q"),
    "repro": (
        "repro",
        "--script",
        "load.sh",
        "--expect",
        "^never$",
        "-k",
        "debian-6.1",
        "-t",
        "tiny.yaml",
        "-n",
        "2",
        "-q",
    ),
    "run": ("run", "gate", "-k", "debian-6.1", "--quick", "-q"),
    "compare": ("compare", "gate", "--quick", "-q"),
    "suite": (
        "suite",
        str(places.ROOT / "tests/data/suite"),
        "tiny/001",
        "tiny/004",
        "--timeout",
        "5",
        "-k",
        "debian-6.1",
        "-q",
    ),
    "image": ("image", "build", "-q"),
    "kernel": ("kernel", "fetch", "debian-6.12", "-q"),
}
# How long a command can be killed, with two cores free: from its start until its guest works, or, for commands that
# make something for a cache (here one of their own), until that is complete.
_LATEST_S = 4.0
_MAKERS_S = {"image": 50.0, "kernel": 12.0}


async def measure(*, count: int, seed: int, commands: Iterable[str] = COMMANDS) -> dict[str, Any]:
    """Send `count` SIGKILLs at random moments: to the command itself, or to any other testbed process that it started.

    `orphans`: processes that outlive their command; `leftovers`: sockets, scratch files and held locks after the next
    command. `left`: which these are, each with what was killed.
    """
    chance = random.Random(seed)
    struck, orphans, leftovers = Counter[str](), list[str](), list[str]()
    began = time.monotonic()
    with places.made() as own:
        own.file("tiny.yaml", _TOPOLOGY)
        own.file("load.sh", 'dd if=/dev/zero of="$DEV_DATA" bs=1M count=32 oflag=direct; sleep 3\n')
        # Missing kernels and templates are made first.
        for name in {*commands} - {*_MAKERS_S}:
            await own.run(*COMMANDS[name], status=None)
        await own.run("down", "--all")
        number = 0
        while number < count:
            name = chance.choice(tuple(commands))
            at = own.bare() if name in _MAKERS_S else own
            started = await at.start(*COMMANDS[name])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(started.wait(), chance.uniform(0, _MAKERS_S.get(name, _LATEST_S)))
            # A command that has ended has no process to kill, except a VM.
            victims = [
                pid for pid, words in own.processes().items() if "testbed" in words and "qemu-system" not in words
            ]
            hit = f"{name}: nothing"
            if victims:
                number += 1
                victim = chance.choice(victims)
                hit = f"{name}: {'itself' if victim == started.pid else 'what it started'}"
                struck[hit] += 1
                own.kill(victim)
            if name == "up":
                # The other processes end by themselves, unless the guest was ready and stays.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(started.wait(), 30)
                # Counted before the next command, which ends guests without a supervisor.
                orphans += await _orphans(hit, own.no_strays, own.strays)
                if own.processes():
                    await own.run("down", "--all")
            await started.communicate()
            orphans += await _orphans(hit, own.no_processes, own.processes)
            await at.run("gc", "--unused-for", "9999d", "--larger-than", "999T")
            leftovers += (f"{hit}: {path}" for path in at.left())
    return {
        "kills": count,
        "orphans": len(orphans),
        "leftovers": len(leftovers),
        "left": orphans + leftovers,
        "seed": seed,
        "struck": dict(struck),
        "took, s": round(time.monotonic() - began),
    }


async def _orphans(hit: str, awaited: Callable[[], Awaitable[None]], there: Callable[[], dict[int, str]]) -> list[str]:
    """Return the processes that outlive their parent, and end them."""
    try:
        await awaited()
    except AssertionError:
        found = there()
        told = [f"{hit}: {words}; {_state(pid)}" for pid, words in found.items()]
        for pid in found:
            places.Places.kill(pid)
        return told
    return []


def _state(pid: int) -> str:
    """What keeps a process: its state, parent, pending signals (proc_pid_status(5)), and for root where in the kernel
    it is.
    """
    lines: list[str] = []
    for name in ("status", "stack"):
        with contextlib.suppress(OSError):
            lines += Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines()
    return ", ".join(line for line in lines if line.startswith(("State", "PPid", "SigPnd", "ShdPnd", "[")))
