"""Builds a stack of loops for a scenario, and measures which cgroup is charged for a command.

    async with open_harness(guest, point) as harness:
        charge = await harness.meter("reader", f"dd if={harness.loop} of=/dev/null bs=1M iflag=direct")

A charge has the growth of the cgroup's counters, and that of the emulated disk's own counters (`query-blockstats`),
which the kernel under test cannot falsify.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from testbed import cgroupfs
from testbed.cgroupfs import ROOT
from testbed.errors import CommandFailed, ReadingError
from testbed.guest import shell_functions
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings
from testbed.guest.setup import apply, survey
from testbed.guest.setup.block_stack import LoopDevice
from testbed.guest.shell_functions import FileTexts
from testbed.scenarios.scenario import Point
from testbed.scenarios.verdict import Balance, Control, Gap, Measure, Part, share_of
from testbed.topology.disks import make_disk
from testbed.topology.model import GuestModel
from testbed.topology.storage import Loop
from testbed.units import parse_whole

# Counters of memory.stat that count events (mm/memcontrol.c: memory_stats, memcg_vm_event_stat); the others are
# amounts.
_EVENTS = (
    "pgscan",
    "pgsteal",
    "pgfault",
    "pgmajfault",
    "pgrefill",
    "pgactivate",
    "pgdeactivate",
    "workingset_",
    "thp_fault",
    "thp_collapse",
)

# $1: cgroup, which is made if it does not exist. COMMAND runs in it; WARM runs before it, outside. The output of both
# goes to standard error. Reads the counters of the cgroup, and the root's io.stat, before and after.
_METERED = """\
cgroup=/sys/fs/cgroup/$1
[ -d "$cgroup" ] || mkdir "$cgroup" || exit 1
counters() {
    section "$1"
    take "$cgroup/io.stat" "$cgroup/memory.stat" "$cgroup/memory.events" /sys/fs/cgroup/io.stat
}
{
:
WARM
} >&2
SURVEY
counters before
(enter "$1" || { note outside 1; exit 1; }; exec >&2; COMMAND)
note status $?
counters after
finish
""".replace("SURVEY", survey.TAKE)
# Drops the page cache of all backing files (dd(1), nocache with count=0), and nothing else: programs that ran before
# stay in memory, so that their pages are not charged to the cgroup, and QEMU keeps the code that it has translated.
FRESH = """\
sync
for backing in /sys/block/loop*/loop/backing_file; do
    [ -e "$backing" ] && read -r file <"$backing" && dd "if=$file" iflag=nocache count=0 status=none
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """The growth of one cgroup's counters during one command.

    `disks`: the bytes read and written of each disk of the topology, as QEMU counted them. A counter that was not read,
    has an unexpected format, or has shrunk although it can only grow raises ReadingError when it is used.
    """

    cgroup: str
    before: FileTexts
    after: FileTexts
    disks: Mapping[str, tuple[int, int]]
    status: int

    def _moved(self, path: str, device: str, counter: str) -> int:
        return cgroupfs.bytes_moved(
            self.before.text(path), self.after.text(path), device, counter, self.after.where(path)
        )

    def io(self, device: str, counter: str) -> int:
        """Growth of a `counter` (rbytes, wbytes, rios, ...) in the cgroup's io.stat on MAJ:MIN; 0 without a line."""
        return self._moved(f"{ROOT}/{self.cgroup}/io.stat", device, counter)

    def whole_io(self, device: str, counter: str) -> int:
        """Growth of a counter in the root's io.stat, which counts everything that the kernel sent to the disk."""
        return self._moved(f"{ROOT}/io.stat", device, counter)

    def _both(self, file: str, counter: str) -> tuple[int, int, str]:
        path = f"{ROOT}/{self.cgroup}/{file}"
        before, after = (
            cgroupfs.parse_key(side.text(path), counter, side.where(path)) for side in (self.before, self.after)
        )
        return before, after, f"{self.after.where(path)}, {counter}"

    def memory(self, counter: str) -> int:
        """Growth of a `counter` in the cgroup's memory.stat: bytes, which can be negative, or events, which cannot."""
        before, after, where = self._both("memory.stat", counter)
        return cgroupfs.growth(before, after, where) if counter.startswith(_EVENTS) else after - before

    def events(self, counter: str) -> int:
        """Growth of a `counter` in the cgroup's memory.events."""
        return cgroupfs.growth(*self._both("memory.events", counter))


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """A stack of loops in a guest.

    `disk`: name of the disk below in the topology, empty on tmpfs; `device`: its MAJ:MIN in the guest. `loops`: from
    the one on the disk to the topmost.
    """

    guest: Guest
    point: Point
    disk: str
    device: str
    loops: tuple[LoopDevice, ...]

    @property
    def loop(self) -> str:
        """Path of the topmost loop in /dev."""
        return self.loops[-1].path

    @property
    def file(self) -> str:
        """Path of the backing file of the topmost loop."""
        return self.loops[-1].backing_file

    async def reattach(self, *options: str) -> None:
        """Detach the topmost loop, and attach it to its file again with these options of losetup."""
        await self.guest.script('losetup -d "$1" && shift && losetup "$@"', self.loop, *options, self.loop, self.file)

    async def reattach_uncached(self, *options: str) -> None:
        """Attach the topmost loop again with these options, after dropping its file's pages and inode from memory.

        The cgroup that dirties the inode next owns its writeback.
        """
        script = f'{FRESH}\nlosetup -d "$1" && echo 2 >/proc/sys/vm/drop_caches && shift && losetup "$@"'
        await self.guest.script(script, self.loop, *options, self.loop, self.file)

    async def meter(self, cgroup: str, command: str, *, warm: str = FRESH, check: bool = True) -> Charge:
        """Run a shell command in a cgroup, and measure what the cgroup is charged. `warm` runs before it, outside.

        :raise CommandFailed: the command failed, and `check` is set. :raise ReadingError: the command could not enter
            the cgroup, or the counters could not be read.
        """
        mark = shell_functions.new_separator()
        script = shell_functions.function_definitions(mark) + _METERED.replace("WARM", warm).replace("COMMAND", command)
        before = await readings.read_disk_bytes(self.guest)
        done = await self.guest.script(script, cgroup)
        after = await readings.read_disk_bytes(self.guest)
        taken = shell_functions.sections(done.stdout, mark, self.guest.name)
        there = taken["before"], taken["after"]
        status = parse_whole(there[0].note("status"), f"guest {self.guest.name}: the status of `{command}`", below=256)
        if "outside" in there[0].notes:
            raise ReadingError(
                f"guest {self.guest.name}: {ROOT}/{cgroup}", "a cgroup that a command can run in", done.stderr[-200:]
            )
        if status and check:
            raise CommandFailed(self.guest.name, command, str(status), done.stderr)
        return Charge(
            cgroup=cgroup,
            before=there[0],
            after=there[1],
            disks={name: _grown_disk(name, before[name], counted) for name, counted in after.items() if name in before},
            status=status,
        )

    async def disk_bytes(self) -> tuple[int, int]:
        """Read how many bytes the emulated disk below has read and written since it was plugged.

        :raise ReadingError: QEMU has no such disk.
        """
        counted = await readings.read_disk_bytes(self.guest)
        if self.disk not in counted:
            raise ReadingError(
                f"guest {self.guest.name}: disk {self.disk}",
                "to be there",
                f"QEMU's counters of {', '.join(counted) or 'none'}",
            )
        return counted[self.disk]

    def disk_moved(self, charge: Charge, counter: str) -> int:
        """Return the bytes that the emulated disk counted; `counter`: `rbytes` or `wbytes`.

        :raise ReadingError: QEMU did not have the disk both before and after.
        """
        if self.disk not in charge.disks:
            raise ReadingError(
                f"disk {self.disk}, {charge.cgroup}", "to be there before and after", "an answer of QEMU without it"
            )
        return charge.disks[self.disk][0 if counter == "rbytes" else 1]

    def balance(self, charge: Charge, counter: str) -> Balance:
        """Compare the bytes that the kernel accounted for in all cgroups with those that the device counted."""
        accounted = charge.whole_io(self.device, counter)
        return Balance(
            what=f"{counter} of disk {self.disk}, {charge.cgroup}",
            accounted=accounted,
            real=self.disk_moved(charge, counter),
        )

    async def resident_bytes(self) -> int:
        """Measure how many bytes of the backing files are in the page cache."""
        files = tuple(loop.backing_file for loop in self.loops)
        printed = (await self.guest.run("fincore", "-b", "-n", "-o", "RES", *files)).stdout
        where = f"guest {self.guest.name}: fincore of {', '.join(files)}"
        found = [parse_whole(line.strip(), where) for line in printed.splitlines()]
        if len(found) != len(files):
            raise ReadingError(where, f"{len(files)} numbers", printed)
        return sum(found)

    def share(self, charge: Charge, counter: str) -> float:
        """Return the cgroup's share of the bytes that the device moved, for display; `part` judges it."""
        moved = self.disk_moved(charge, counter)
        return charge.io(self.device, counter) / moved if moved else 0.0

    def charged_reads(self, charge: Charge) -> Measure:
        """Return the bytes of the disk that the cgroup `reader` is charged for."""
        charged = charge.io(self.device, "rbytes")
        return Measure(name="charged reads", value=charged, unit="bytes", source="io.stat rbytes of reader")

    def part(self, charge: Charge, counter: str, *, asked: int) -> Part:
        """Judge whether the disk's bytes are charged to the cgroup, as a part of a claim.

        `asked`: the bytes that were requested. If the disk moved less than 90 % of them, the part is unclear (where
        holes were punched, 94 % are left).
        """
        return share_of(
            "the disk's bytes", charge.io(self.device, counter), self.disk_moved(charge, counter), least=asked * 0.9
        )

    def charged_control(self, name: str, charge: Charge, counter: str, *, asked: int) -> Control:
        """Make the control that all bytes are charged to the cgroup, as on every kernel without a buffered loop.

        `asked`: as in `part`.
        """
        gap = self.part(charge, counter, asked=asked).gap
        return Control(
            name=name,
            expected=f"95 to 105 % of the disk's bytes charged, of about {asked} or more",
            got=f"{self.share(charge, counter):.1%} of {self.disk_moved(charge, counter)} bytes",
            holds=gap is Gap.CLOSED,
            excess=gap is Gap.EXCESS,
        )


def _grown_disk(name: str, before: tuple[int, int], after: tuple[int, int]) -> tuple[int, int]:
    """Return the growth of a disk's bytes read and written. Its counters restart when it is plugged again."""
    where = f"disk {name}: QEMU's counters"
    return cgroupfs.growth(before[0], after[0], where), cgroupfs.growth(before[1], after[1], where)


# Kernels read ahead differently (7.2: megabytes on virtio-blk), which would charge one reader for pages of another.
_READ_AHEAD = "128K"


def loops_at(point: Point, disk: str) -> GuestModel:
    """Return the stack of a point as a topology: `loop0` on the disk (or on tmpfs), `loop1` on `loop0`, and so on."""
    loops: dict[str, Loop] = {}
    holder, filesystem, size = disk or "ram", point.filesystem, point.size_bytes
    for level in range(point.depth):
        # Each loop has space for the filesystem of the next.
        size_bytes = size * (2 ** (point.depth - 1 - level))
        keys = {"backing": f"{holder}/file", "filesystem": filesystem, "size": size_bytes, "read-ahead": _READ_AHEAD}
        loops[f"loop{level}"] = Loop.model_validate(keys)
        holder, filesystem = f"loop{level}", "ext4" if point.filesystem == "tmpfs" else point.filesystem
    disks = (
        {disk: make_disk(type=point.disk, size=point.least_bytes, read_ahead=_READ_AHEAD)}
        if point.disk is not None
        else {}
    )
    return GuestModel(disks=disks, loops=loops)


@contextlib.asynccontextmanager
async def open_harness(guest: Guest, point: Point) -> AsyncIterator[Harness]:
    """Build the stack of a point in a guest, and remove it at the end."""
    disk = point.disk_in(guest.model) or ""
    async with apply.stack_applied(guest, loops_at(point, disk)) as made:
        yield Harness(
            guest=guest,
            point=point,
            disk=disk,
            device=guest.disks[disk].number if disk else "",
            loops=tuple(made.loops[f"loop{level}"] for level in range(point.depth)),
        )
