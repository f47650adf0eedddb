"""Defines a scenario: its claim, its needs, its predictions for both kinds of kernel, its points, and its steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from testbed.guest.channels.kernel_log import Kind
from testbed.guest.guest import Guest
from testbed.host.admission import Cores
from testbed.scenarios.verdict import Evidence, Skipped
from testbed.topology.model import GuestModel
from testbed.units import MIB, format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that the guest must have. `test`: a shell command that succeeds if it has it; see `NEEDS_PRELUDE`."""

    what: str
    test: str


# A function for these commands. Running grep costs 0.1 s under emulation, the shell's builtins cost nothing.
NEEDS_PRELUDE = """\
has_word() { read -r words <"$2" && case " $words " in *" $1 "*) ;; *) false ;; esac; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a scenario runs: the kind of disk, the filesystem with the backing file, and parameters of its steps.

    `disk`: None for memory only. `size_bytes`: size of the backing file. `depth`: number of loops on top of each other.
    `profile`: device that the disk behaves like. `variant`: a parameter of the scenario, and the last part of the name.
    """

    disk: str | None = None
    filesystem: str = "tmpfs"
    size_bytes: int = 32 * MIB
    depth: int = 1
    profile: str | None = None
    variant: str = ""

    @property
    def name(self) -> str:
        where = (self.disk, self.filesystem) if self.disk else ()
        return "/".join(word for word in (*where, self.variant) if word)

    def disk_in(self, model: GuestModel) -> str | None:
        """Return the name of the topology's first disk of this kind that is large enough."""
        return next(
            (name for name, disk in model.disks.items() if disk.type == self.disk and disk.size >= self.least_bytes),
            None,
        )

    @property
    def least_bytes(self) -> int:
        """How large the disk must be, with space for metadata; mkfs of xfs and btrfs refuses less than 300M."""
        return max(self.size_bytes * 2, 512 * MIB)

    def lacks(self, model: GuestModel) -> str | None:
        """Return why a guest of a topology cannot run the scenario here, or None if it can."""
        if self.disk is None or self.disk_in(model) is not None:
            return None
        return f"the topology has no {self.disk} disk of at least {format_size(self.least_bytes)}"


ANYWHERE = (Point(),)


# The kinds of disk that the scenarios run on.
_DISKS = ("virtio-blk", "nvme")


def on_each_disk(
    *filesystems: str,
    variants: tuple[str, ...] = ("",),
    size_bytes: int = 32 * MIB,
    depth: int = 1,
    profile: str | None = None,
) -> tuple[Point, ...]:
    """Return a point for each variant, filesystem and kind of disk, sorted in this order."""
    return tuple(
        Point(disk=disk, filesystem=filesystem, variant=variant, size_bytes=size_bytes, depth=depth, profile=profile)
        for variant in variants
        for filesystem in filesystems
        for disk in _DISKS
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One claim about the series: a kernel without the series must show the gap, one with it must have closed it.

    `patches`: the patches of the series (1 to 4) that the scenario tests. `source`: where the claim comes from.
    `points`: where it runs, the most telling first. `what`: a description of the steps. `steps`: runs them on a fresh
    guest, and returns the evidence, or the reason why this kernel has none; an exception is no verdict on the kernel.
    `cpus`: the least number of CPUs of its guest. `expected_log`: kinds of console lines that the steps cause. `found`:
    what many runs have shown.
    """

    name: str
    claim: str
    patches: tuple[int, ...]
    predicted_base: str
    predicted_patched: str
    source: str
    what: str
    steps: Callable[[Guest, Point], Awaitable[Evidence | Skipped]]
    points: tuple[Point, ...] = ANYWHERE
    needs: tuple[Need, ...] = ()
    cores: Cores = Cores.SHARED
    cpus: int = 1
    expected_log: frozenset[Kind] = frozenset()
    found: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One scenario at one of its points: the unit that is run, judged and reported."""

    scenario: Scenario
    point: Point

    @property
    def name(self) -> str:
        return "/".join(word for word in (self.scenario.name, self.point.name) if word)

    def model(self, model: GuestModel) -> GuestModel:
        """Return the topology's guest with enough CPUs, and its disk with the profile of this point."""
        model = model.model_copy(update={"cpus": max(model.cpus, self.scenario.cpus)})
        name = self.point.disk_in(model)
        if name is None or self.point.profile is None:
            return model
        disk = model.disks[name].model_copy(update={"profile": self.point.profile, "throttle": None})
        return model.model_copy(update={"disks": {**model.disks, name: disk}})


_SUBTREE_CONTROL = "/sys/fs/cgroup/cgroup.subtree_control"
MEMORY_CONTROLLER = Need(what="the memory controller of cgroup v2", test=f"has_word memory {_SUBTREE_CONTROL}")
IO_CONTROLLER = Need(what="the io controller of cgroup v2", test=f"has_word io {_SUBTREE_CONTROL}")
LOOP_DEVICES = Need(what="loop devices", test="test -e /dev/loop-control")
FIO = Need(what="fio", test="command -v fio >/dev/null")
COMMON_NEEDS = (MEMORY_CONTROLLER, IO_CONTROLLER, LOOP_DEVICES)


def debugfs_need(what: str, path: str) -> Need:
    """Make the need of a kernel option that shows as a path in debugfs; the command mounts debugfs if necessary."""
    mounted = "{ test -e /sys/kernel/debug/block || mount -t debugfs none /sys/kernel/debug; } 2>/dev/null"
    return Need(what=what, test=f"{mounted}; test -e {path}")


COVER_LETTER = 'cover letter of "Charge loop device i/o to issuing cgroup", v5, 2020-04-20'
