"""What most scenarios stand on: a stack of loops at a point, and readings of who was charged for a command.

    async with rig(guest, point) as at:
        reading = await at.meter("reader", f"dd if={at.loop} of=/dev/null bs=1M iflag=direct")

A reading holds the deltas of a cgroup's counters, and what the emulated disk counted meanwhile (`query-blockstats`), which the kernel under
test cannot bend.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from testbed import cgroupfs
from testbed.errors import CommandFailed, ReadingError
from testbed.guest import shell_functions
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings
from testbed.guest.setup import apply, survey
from testbed.guest.setup.block_stack import LoopDevice
from testbed.guest.shell_functions import FileTexts
from testbed.scenarios.scenario import Point
from testbed.scenarios.verdict import Balance, Control, Gap, Part, share_of
from testbed.topology.disks import make_disk
from testbed.topology.model import GuestModel
from testbed.topology.storage import Loop
from testbed.units import parse_whole

ROOT = "/sys/fs/cgroup"
# What of memory.stat is a number of events (mm/memcontrol.c: memory_stats, memcg_vm_event_stat); the rest is what there is now.
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

# $1: cgroup, made if it is not there. COMMAND runs inside it, WARM before it and outside; what they print goes to standard error. Takes the
# cgroup's counters, and the root's io.stat, before and after.
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
# Empties the page cache of all backing files (dd(1), nocache with count=0), and nothing else: programs that ran before stay in memory, so
# that their pages are not the cgroup's, and QEMU keeps the code that it has translated.
FRESH = """\
sync
for backing in /sys/block/loop*/loop/backing_file; do
    [ -e "$backing" ] && read -r file <"$backing" && dd "if=$file" iflag=nocache count=0 status=none
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one command did to one cgroup's counters; `disks`: bytes read and written of each disk of the topology, as QEMU counted them.

    What was not read, has another form than the kernel's, or has shrunk where it only grows, raises ReadingError when it is asked for.
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
        """Growth of the cgroup's io.stat `counter` (rbytes, wbytes, rios, ...) on MAJ:MIN; one that it has not used has no line."""
        return self._moved(f"{ROOT}/{self.cgroup}/io.stat", device, counter)

    def whole_io(self, device: str, counter: str) -> int:
        """The same of the root, whose io.stat counts everything that the kernel sent to the disk."""
        return self._moved(f"{ROOT}/io.stat", device, counter)

    def _both(self, file: str, counter: str) -> tuple[int, int, str]:
        path = f"{ROOT}/{self.cgroup}/{file}"
        before, after = (
            cgroupfs.parse_key(side.text(path), counter, side.where(path)) for side in (self.before, self.after)
        )
        return before, after, f"{self.after.where(path)}, {counter}"

    def memory(self, counter: str) -> int:
        """Growth of the cgroup's memory.stat `counter`: bytes, which may have become fewer, or events, which cannot."""
        before, after, where = self._both("memory.stat", counter)
        return cgroupfs.growth(before, after, where) if counter.startswith(_EVENTS) else after - before

    def events(self, counter: str) -> int:
        """Growth of the cgroup's memory.events `counter`."""
        return cgroupfs.growth(*self._both("memory.events", counter))


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """A stack that is there. `disk`: the topology's name of the disk below, empty on tmpfs; `device`: its MAJ:MIN in the guest. `loops`:
    from the one on the disk to the topmost."""

    guest: Guest
    point: Point
    disk: str
    device: str
    loops: tuple[LoopDevice, ...]

    @property
    def loop(self) -> str:
        """/dev path of the topmost loop."""
        return self.loops[-1].path

    @property
    def file(self) -> str:
        """Its backing file."""
        return self.loops[-1].backing_file

    async def attach(self, *options: str) -> None:
        """Detach the topmost loop and attach it again to its file, with these options of losetup."""
        await self.guest.script('losetup -d "$1" && shift && losetup "$@"', self.loop, *options, self.loop, self.file)

    async def forget(self, *options: str) -> None:
        """Attach the topmost loop again with these options, its file's pages and inode gone from memory.

        Whoever dirties the inode next owns its writeback.
        """
        script = f'{FRESH}\nlosetup -d "$1" && echo 2 >/proc/sys/vm/drop_caches && shift && losetup "$@"'
        await self.guest.script(script, self.loop, *options, self.loop, self.file)

    async def meter(self, cgroup: str, command: str, *, warm: str = FRESH, check: bool = True) -> Charge:
        """Run a shell command inside a cgroup and read who was charged; `warm` runs before, outside.

        :raise CommandFailed: the command failed, while `check`. :raise ReadingError: it did not run inside, or its counters were not read.
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
        """Bytes that the emulated disk below has read and written until now.

        :raise ReadingError: it is not there.
        """
        found = await readings.read_disk_bytes(self.guest)
        if self.disk not in found:
            raise ReadingError(
                f"guest {self.guest.name}: disk {self.disk}",
                "to be there",
                f"QEMU's counters of {', '.join(found) or 'none'}",
            )
        return found[self.disk]

    def moved(self, reading: Charge, counter: str) -> int:
        """Bytes that the emulated disk counted, `rbytes` or `wbytes`.

        :raise ReadingError: it was not there before and after.
        """
        if self.disk not in reading.disks:
            raise ReadingError(
                f"disk {self.disk}, {reading.cgroup}", "to be there before and after", "an answer of QEMU without it"
            )
        return reading.disks[self.disk][0 if counter == "rbytes" else 1]

    def balance(self, reading: Charge, counter: str) -> Balance:
        """The disk's bytes as the kernel accounted for them in all cgroups, against what the device counted."""
        accounted = reading.whole_io(self.device, counter)
        return Balance(
            what=f"{counter} of disk {self.disk}, {reading.cgroup}",
            accounted=accounted,
            real=self.moved(reading, counter),
        )

    async def resident(self) -> int:
        """Bytes of the backing files that are in the page cache now."""
        files = tuple(loop.backing_file for loop in self.loops)
        printed = (await self.guest.run("fincore", "-b", "-n", "-o", "RES", *files)).stdout
        where = f"guest {self.guest.name}: fincore of {', '.join(files)}"
        found = [parse_whole(line.strip(), where) for line in printed.splitlines()]
        if len(found) != len(files):
            raise ReadingError(where, f"{len(files)} numbers", printed)
        return sum(found)

    def share(self, reading: Charge, counter: str) -> float:
        """The cgroup's part of what the device moved, to be shown; `part` judges it."""
        moved = self.moved(reading, counter)
        return reading.io(self.device, counter) / moved if moved else 0.0

    def part(self, reading: Charge, counter: str, *, asked: int) -> Part:
        """The part of a claim that the disk's bytes are the cgroup's. `asked`: bytes, of which the disk must have moved 9 in 10, or nothing
        is known (where holes were punched, 94 % are left)."""
        return share_of(
            "the disk's bytes", reading.io(self.device, counter), self.moved(reading, counter), least=asked * 0.9
        )

    def charged(self, name: str, reading: Charge, counter: str, *, asked: int) -> Control:
        """The control that all of a reading's bytes are the cgroup's, as they are on every kernel where no buffered loop is in between.

        `asked`: as in `part`.
        """
        gap = self.part(reading, counter, asked=asked).gap
        return Control(
            name=name,
            expected=f"95 to 105 % of the disk's bytes charged, of about {asked} or more",
            got=f"{self.share(reading, counter):.1%} of {self.moved(reading, counter)} bytes",
            holds=gap is Gap.CLOSED,
            excess=gap is Gap.EXCESS,
        )


def _grown_disk(name: str, before: tuple[int, int], after: tuple[int, int]) -> tuple[int, int]:
    """Bytes that a disk has read and written. Its counters begin anew where it is plugged in again."""
    where = f"disk {name}: QEMU's counters"
    return cgroupfs.growth(before[0], after[0], where), cgroupfs.growth(before[1], after[1], where)


# Kernels differ in how far they read ahead (7.2: megabytes on virtio-blk), which would charge one reader for another's pages.
_READ_AHEAD = "128K"


def loops_at(point: Point, disk: str) -> GuestModel:
    """The point's stack as a topology says it: `loop0` on the disk (or on tmpfs), `loop1` on a file on `loop0`, and so on."""
    loops: dict[str, Loop] = {}
    holder, filesystem, size = disk or "ram", point.filesystem, point.size_bytes
    for level in range(point.depth):
        # Each level leaves room for the filesystem of the next.
        bytes_here = size * (2 ** (point.depth - 1 - level))
        said = {"backing": f"{holder}/file", "filesystem": filesystem, "size": bytes_here, "read-ahead": _READ_AHEAD}
        loops[f"loop{level}"] = Loop.model_validate(said)
        holder, filesystem = f"loop{level}", "ext4" if point.filesystem == "tmpfs" else point.filesystem
    disks = (
        {disk: make_disk(type=point.disk, size=point.least_bytes, read_ahead=_READ_AHEAD)}
        if point.disk is not None
        else {}
    )
    return GuestModel(disks=disks, loops=loops)


@contextlib.asynccontextmanager
async def open_harness(guest: Guest, point: Point) -> AsyncIterator[Harness]:
    """The point's stack on a guest, undone at the end."""
    disk = point.disk_in(guest.model) or ""
    async with apply.stack_applied(guest, loops_at(point, disk)) as made:
        yield Harness(
            guest=guest,
            point=point,
            disk=disk,
            device=guest.disks[disk].number if disk else "",
            loops=tuple(made.loops[f"loop{level}"] for level in range(point.depth)),
        )
