"""Loops to the ordered steps that make them, each beside its undoing. Pure: knows the guest's devices, touches nothing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.filesystems import FILESYSTEMS
from testbed.topology.model import Loop
from testbed.units import MIB

MOUNTS = "/mnt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Commands of one step, and the one that undoes them; both are argvs, run in the guest."""

    what: str
    do: tuple[tuple[str, ...], ...]
    undo: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice:
    """Where a loop of the topology is: its device, its backing file, and the disks below it, the nearest first."""

    path: str
    backing_file: str
    disks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Steps in the order of making them; `loops` is what is there afterwards."""

    steps: tuple[Step, ...]
    loops: dict[str, LoopDevice]


def plan_stack(wanted: Mapping[str, Loop], devices: Mapping[str, str]) -> Stack:
    """The steps for these loops and what they stand on.

    `devices`: /dev path of each disk. A loop's number is its place among `wanted`.
    """
    numbers = {name: number for number, name in enumerate(wanted)}
    steps: list[Step] = []
    loops: dict[str, LoopDevice] = {}
    mounted: set[str] = set()

    def add(name: str) -> None:
        if name in loops:
            return
        loop = wanted[name]
        holder = loop.holder
        below: tuple[str, ...] = ()
        if holder in wanted:
            add(holder)
            device: str | None = loops[holder].path
            below = loops[holder].disks
        else:
            device = devices.get(holder)
            below = (holder,) if device is not None else ()
        folder = f"{MOUNTS}/{holder}"
        if holder not in mounted:
            mounted.add(holder)
            steps.append(_mount(loop.filesystem, device, folder))
        file = f"{folder}/{loop.file}"
        path = f"/dev/loop{numbers[name]}"
        steps.append(_backing_file(file, loop.size, sparse=not FILESYSTEMS[loop.filesystem].on_device))
        steps.append(_attach(path, file, direct_io=loop.direct_io))
        loops[name] = LoopDevice(path=path, backing_file=file, disks=below)

    for name in wanted:
        add(name)
    return Stack(steps=tuple(steps), loops=loops)


def _mount(filesystem: str, device: str | None, folder: str) -> Step:
    row = FILESYSTEMS[filesystem]
    options = ("-o", ",".join(row.options)) if row.options else ()
    make = ((*row.mkfs, device),) if device is not None else ()
    return Step(
        what=f"{filesystem} on {device or 'memory'} at {folder}",
        do=(*make, ("mkdir", "-p", folder), ("mount", "-t", filesystem, *options, device or filesystem, folder)),
        undo=("umount", folder),
    )


def _backing_file(file: str, size_bytes: int, *, sparse: bool) -> Step:
    """On a disk the file is written in full, and from the root cgroup: what a scenario does later is charged where it is done, not where
    the file was made. Past the page cache, which takes a quarter of the time. On tmpfs it stays sparse, for there the claim is about pages
    that a write allocates."""
    if sparse:
        return Step(what=f"sparse {file}", do=(("truncate", "-s", str(size_bytes), file),))
    blocks, rest = divmod(size_bytes, MIB)
    command = ("dd", "if=/dev/zero", f"of={file}", "bs=1M", f"count={blocks}", "oflag=direct", "conv=fsync", "status=none")
    return Step(what=f"written {file}", do=(command, *((("truncate", "-s", str(size_bytes), file),) if rest else ())))


def _attach(path: str, file: str, *, direct_io: bool) -> Step:
    return Step(
        what=f"{path} on {file}",
        do=(("losetup", f"--direct-io={'on' if direct_io else 'off'}", path, file),),
        undo=("losetup", "-d", path),
    )


def do_script(stack: Stack) -> str:
    """One shell script for all steps: one SSH command costs more than most steps. Prints `done N` after each step, and stops at the first
    that fails, so that exactly the ones that were made can be undone."""
    lines = []
    for number, step in enumerate(stack.steps):
        commands = " && ".join(shlex.join(command) for command in step.do)
        lines.append(f"{commands} || {{ echo {shlex.quote('failed: ' + step.what)} >&2; exit 1; }}\necho done {number}")
    return "\n".join([*lines, "sync"]) + "\n"


def undo_script(stack: Stack, done: int) -> str:
    """Undo the first `done` steps, in reverse; goes on where one fails, and then ends with status 1."""
    lines = [f"{shlex.join(step.undo)} || failed=1" for step in reversed(stack.steps[:done]) if step.undo is not None]
    return "\n".join(["failed=0", *lines, "exit $failed"]) + "\n"


def steps_done(output: str) -> int:
    """How many steps `do_script` finished, from what it printed."""
    return sum(line.startswith("done ") for line in output.splitlines())
