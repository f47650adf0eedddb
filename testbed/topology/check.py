"""What a topology's parts must be to each other. Pure: takes a valid model, returns (path, message) for every mistake."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.filesystems import FILESYSTEMS
from testbed.hardware.profiles import PROFILES
from testbed.topology.model import Disk, Guest, Limits, Loop, Topology
from testbed.units import MIB, format_size

Path = tuple[str | int, ...]

# One PCIe root port a disk. A function of the root bus device holds one port, and QEMU's q35 has room for more, but nobody asked yet.
MAX_DISKS = 16
_RESERVED = ("root", "modules")
# The smallest disk on which mkfs.xfs makes a filesystem is 300 MiB (xfsprogs 5.19); ext4 and btrfs need less (btrfs 109 MiB).
_SMALLEST_BYTES = {"ext4": 8 * MIB, "btrfs": 128 * MIB, "xfs": 300 * MIB}


def check(topology: Topology) -> tuple[tuple[Path, str], ...]:
    """Every mistake that the shape of the file does not show."""
    found: list[tuple[Path, str]] = []
    for name, guest in topology.guests.items():
        found += ((("guests", name, *path), message) for path, message in _guest(guest))
    return tuple(found)


def _guest(guest: Guest) -> Iterator[tuple[Path, str]]:
    if guest.memory % MIB or guest.memory < 256 * MIB:
        yield ("memory",), f"expected a whole number of MiB, at least 256M, got {format_size(guest.memory)}"
    if len(guest.disks) > MAX_DISKS:
        yield ("disks",), f"expected at most {MAX_DISKS} disks, one for each hot-plug port, got {len(guest.disks)}"
    for name, disk in guest.disks.items():
        for path, message in _disk(name, disk):
            yield ("disks", name, *path), message
    for name, loop in guest.loops.items():
        for path, message in _loop(name, loop, guest):
            yield ("loops", name, *path), message


def _disk(name: str, disk: Disk) -> Iterator[tuple[Path, str]]:
    if name in _RESERVED:
        yield (), f"{name!r} is the name of a disk that every guest has; choose another"
    if disk.size % 4096:
        yield ("size",), f"expected a multiple of 4096 bytes, got {disk.size}"
    if disk.profile is not None and disk.profile not in PROFILES:
        yield ("profile",), f"expected one of {', '.join(PROFILES)}, got {disk.profile!r}"
    if disk.profile is not None and disk.throttle is not None:
        yield ("throttle",), "expected either a profile or a throttle, got both"
    if disk.throttle is not None:
        yield from ((("throttle",), message) for message in _limits(disk.throttle))


def _limits(limits: Limits) -> Iterator[str]:
    for unit in ("iops", "bps"):
        total, read, write = (getattr(limits, f"{unit}_{which}") for which in ("total", "read", "write"))
        if total and (read or write):
            yield f"expected {unit}-total or {unit}-read and {unit}-write, got both (QEMU refuses that)"


def _loop(name: str, loop: Loop, guest: Guest) -> Iterator[tuple[Path, str]]:
    if name in guest.disks:
        yield (), f"{name!r} is a disk already; loops and disks share their names"
    if loop.size % 4096:
        yield ("size",), f"expected a multiple of 4096 bytes, got {loop.size}"
    holder = loop.holder
    if not FILESYSTEMS[loop.filesystem].on_device:
        if holder in guest.disks or holder in guest.loops:
            yield (
                ("backing",),
                f"{loop.filesystem} needs no device: expected a new name before the slash, got the {_kind(holder, guest)} {holder!r}",
            )
        return
    room = guest.disks.get(holder) or guest.loops.get(holder)
    if room is None:
        known = ", ".join([*guest.disks, *guest.loops]) or "none"
        yield ("backing",), f"expected a disk or a loop before the slash ({known}), got {holder!r}"
        return
    if _in_a_cycle(name, guest):
        yield ("backing",), "the loop stands on itself"
        return
    if room.size < _SMALLEST_BYTES[loop.filesystem]:
        smallest = format_size(_SMALLEST_BYTES[loop.filesystem])
        yield ("filesystem",), f"{loop.filesystem} needs at least {smallest}, {holder!r} has {format_size(room.size)}"
    elif sum(other.size for other in guest.loops.values() if other.holder == holder) > room.size * 9 // 10:
        yield ("size",), f"the backing files on {holder!r} need more than nine tenths of its {format_size(room.size)}"
    others = {other.filesystem for other in guest.loops.values() if other.holder == holder}
    if len(others) > 1:
        yield ("filesystem",), f"{holder!r} can have one filesystem, got {', '.join(sorted(others))}"


def _kind(name: str, guest: Guest) -> str:
    return "disk" if name in guest.disks else "loop"


def _in_a_cycle(name: str, guest: Guest) -> bool:
    seen: set[str] = set()
    while name in guest.loops and FILESYSTEMS[guest.loops[name].filesystem].on_device:
        if name in seen:
            return True
        seen.add(name)
        name = guest.loops[name].holder
    return False
