"""A cgroup of a guest, and its counters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from testbed import cgroupfs
from testbed.cgroupfs import ROOT
from testbed.errors import ReadingError, UsageError
from testbed.guest import shell_functions
from testbed.guest.channels.ssh import Result

__tracebackhide__ = True  # pytest shows no frames of this module

# $1: the cgroup; the rest: FILE VALUE pairs. Each level enables its controllers for the next; those of the root are
# left to the test.
MAKE = """\
cd /sys/fs/cgroup || exit
path=$1 && shift
here=.
while [ -n "$path" ]; do
    if [ "$here" != . ]; then
        read -r there <"$here/cgroup.controllers"
        for controller in $there; do echo "+$controller" >"$here/cgroup.subtree_control"; done
    fi
    here=$here/${path%%/*}
    case $path in */*) path=${path#*/} ;; *) path= ;; esac
    [ -d "$here" ] || mkdir "$here" || exit
done
while [ $# -gt 0 ]; do
    echo "$2" >"$here/$1" || { echo "$1: the kernel does not take '$2'" >&2; exit 1; }
    shift 2
done
"""
# Kills the processes of the cgroup first, which takes a moment. The file cgroup.kill exists since Linux 5.14.
REMOVE = """\
cd "/sys/fs/cgroup/$1" 2>/dev/null || exit 0
if [ -e cgroup.kill ]; then echo 1 >cgroup.kill; else while read -r pid; do kill -9 "$pid"; done <cgroup.procs; fi
cd / && for try in 1 2 3 4 5 6 7 8 9 10; do
    rmdir "/sys/fs/cgroup/$1" 2>/dev/null && exit
    sleep 0.1
done
rmdir "/sys/fs/cgroup/$1"
"""
# $1: the cgroup; the rest: NAME PATH pairs of devices.
_READ = """\
group=/sys/fs/cgroup/$1 && shift
cd "$group" || exit
for file in io.stat memory.stat memory.events memory.current memory.swap.current memory.peak; do
    [ ! -e "$file" ] || take "$group/$file"
done
while [ $# -gt 0 ]; do
    name=$1 path=$2 && shift 2
    [ ! -L "$path" ] || path=$(readlink -f "$path")
    if [ -e "/sys/class/block/${path##*/}/dev" ]; then
        read -r number <"/sys/class/block/${path##*/}/dev" && note "$name" "$number"
    fi
done
cd "$group" || exit
finish
"""


def read_command(mark: str) -> str:
    """Return the script that prints a cgroup's counters and the MAJ:MIN of devices; it fails if there is no such
    cgroup, or none any more at the end."""
    return shell_functions.function_definitions(mark) + _READ


def _difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def _growth(
    after: Mapping[str, int], before: Mapping[str, int], where: str, only: Collection[str] | None = None
) -> dict[str, int]:
    """Return the difference of counters that only grow: those of `only`, or all of them.

    :raise ReadingError: one has shrunk, or is missing now.
    """
    found = _difference(after, before)
    for name in before if only is None else before.keys() & only:
        if name not in after:
            raise ReadingError(f"{where} {name}", f"at least {before[name]}, as before", "nothing")
        cgroupfs.growth(before[name], after[name], f"{where} {name}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """A cgroup's counters at one moment, or the difference of two: `(await group.counters()) - before`.

    `io`: rbytes, wbytes, rios, wios, dbytes and dios by device, which has its name in the topology, or MAJ:MIN
    without one; a device without I/O is missing, and `of` returns 0 for it. `memory`: memory.stat. `events`:
    memory.events. `usage`: `current`, `swap.current` and `peak`. `devices`: the possible names in `io`; `has_io`:
    whether there is an io.stat file.
    """

    io: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    devices: Collection[str] = ()
    has_io: bool = True

    def of(self, device: str, counter: str) -> int:
        """Return one counter of io.stat, such as `of("data", "rbytes")`; 0 for a device without I/O.

        :raise UsageError: there is no such device or counter. :raise ReadingError: there is no io.stat.
        """
        if not self.has_io:
            raise ReadingError("io.stat", "the file, which is there where the io controller is on", "none")
        counted = self.io.get(device, {})
        if counter not in counted and counter not in cgroupfs.MOVED:
            raise UsageError(f"{counter}: expected one of io.stat's counters, which are {', '.join(cgroupfs.MOVED)}")
        if self.devices and device not in {*self.io, *self.devices} and not cgroupfs.is_device(device):
            raise UsageError(
                f"{device}: expected MAJ:MIN, or one of the devices that are there: {', '.join(self.devices)}"
            )
        return counted.get(counter, 0)

    def __sub__(self, before: Counters) -> Counters:
        """Return how much the counters have grown since `before`.

        :raise ReadingError: a counter that can only grow has shrunk, or its device is missing now.
        """
        devices = {**before.io, **self.io}
        return Counters(
            io={
                device: _growth(
                    self.io.get(device, {}), before.io.get(device, {}), f"io.stat, {device}", cgroupfs.MOVED
                )
                for device in devices
            },
            memory=_difference(self.memory, before.memory),
            events=_growth(self.events, before.events, "memory.events"),
            usage=_difference(self.usage, before.usage),
            devices=self.devices,
            has_io=self.has_io and before.has_io,
        )


def parse(group: str, text: str, mark: str, guest: str) -> Counters:
    """Parse the output of `read_command`.

    :raise ReadingError: a counter is malformed, or the output was cut.
    """
    taken = shell_functions.sections(text, mark, guest)[""]
    names = {number: name for name, number in taken.notes.items()}
    folder = f"{ROOT}/{group}"

    def read(file: str) -> str | None:
        """Return the content of a file; None if the kernel does not have it, or its controller is off."""
        path = f"{folder}/{file}"
        return taken.text(path) if path in taken.texts or path in taken.unread else None

    def flat(file: str) -> dict[str, int]:
        text = read(file)
        return {} if text is None else cgroupfs.parse_flat(text, taken.where(f"{folder}/{file}"))

    single = {name: read(f"memory.{name}") for name in ("current", "swap.current", "peak")}
    io = read("io.stat")
    moved = {} if io is None else cgroupfs.parse_io_stat(io, taken.where(f"{folder}/io.stat"))
    return Counters(
        io={names.get(number, number): counted for number, counted in moved.items()},
        memory=flat("memory.stat"),
        events=flat("memory.events"),
        devices=tuple(names.values()),
        has_io=io is not None,
        usage={
            name: cgroupfs.parse_single(text, taken.where(f"{folder}/memory.{name}"))
            for name, text in single.items()
            if text is not None
        },
    )


class Runs(Protocol):
    """What a cgroup uses of its guest."""

    async def run(
        self,
        *command: str,
        check: bool = True,
        timeout_s: float | None = None,
        input: str | bytes = b"",
        cgroup: str | None = None,
    ) -> Result: ...

    async def script(
        self, text: str, *arguments: str, check: bool = True, timeout_s: float | None = None
    ) -> Result: ...

    async def counters(self, cgroup: str) -> Counters: ...

    def numbered(self, value: str | int) -> str: ...


class CgroupMaker(Protocol):
    """The fixture `cgroup`; see `Vm.cgroup`."""

    def __call__(
        self, name: str = "test", files: Mapping[str, str | int] = ...
    ) -> AbstractAsyncContextManager[Cgroup]: ...


class Cgroup:
    """A cgroup that exists. Made by `Vm.cgroup`."""

    def __init__(self, name: str, vm: Runs) -> None:
        self.name = name
        self.path = f"{ROOT}/{name}"
        self._vm = vm

    async def run(
        self, *command: str, check: bool = True, timeout_s: float | None = None, input: str | bytes = b""
    ) -> Result:
        """Run a command inside the cgroup; see `Vm.run`. Its shell is inside as well, and may be the process that
        the kernel kills."""
        return await self._vm.run(*command, check=check, timeout_s=timeout_s, input=input, cgroup=self.name)

    async def counters(self) -> Counters:
        """Read the cgroup's counters."""
        return await self._vm.counters(self.name)

    async def set(self, file: str, value: str | int) -> None:
        """Write a file of the cgroup, such as `memory.max`. `{data}` in the value is replaced by the MAJ:MIN of that
        disk, as `io.max` needs it.

        :raise CommandFailed: the kernel refuses the value.
        """
        await self._vm.script('echo "$2" >"$1"', f"{self.path}/{file}", self._vm.numbered(value))

    async def get(self, file: str) -> str:
        """Read a file of the cgroup.

        :raise CommandFailed: there is no such file.
        """
        return (await self._vm.run("cat", f"{self.path}/{file}")).stdout
