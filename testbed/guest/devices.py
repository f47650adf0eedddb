"""Compares the guest's disks, as its agent lists them, with the topology. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.guest.channels.kernel_log import clean
from testbed.hardware.disk_kinds import DISK_KINDS, MODULES_SERIAL, ROOT_SERIAL
from testbed.qemu import blockdev
from testbed.topology.disks import Disk
from testbed.units import is_digits

# A disk of 2**63 bytes has 17 digits of sectors.
_MOST_DIGITS = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One whole disk in the guest.

    `number`: MAJ:MIN, as in io.stat. `id`: its number among the disks with its serial, or empty.
    """

    path: str
    number: str
    serial: str
    kind: str
    size_bytes: int
    read_only: bool
    id: str = ""


def query_command(count: int) -> dict[str, str]:
    """Return what the agent is asked: to wait for `count` disks, and where it finds each kind of disk.

    Kinds that a guest shows alike are asked for once, so that no disk is listed twice.
    """
    alike = {kind: name for name, kind in reversed(DISK_KINDS.items())}
    kinds = {name: kind for name, kind in DISK_KINDS.items() if alike[kind] == name}
    return {
        "count": str(count),
        **{name: f"{kind.guest_prefix},{kind.guest_serial},{kind.guest_id}" for name, kind in kinds.items()},
    }


def count_disks(disks: Mapping[str, Disk]) -> int:
    """Return how many whole disks the guest sees for these: one more for each namespace."""
    return sum(1 + len(blockdev.namespaces(disk)) for disk in disks.values())


def parse(listing: str) -> tuple[Device, ...]:
    """Parse the agent's answer: `KIND,NAME,MAJ:MIN,SECTORS,READ-ONLY,SERIAL-IN-HEX,ID` for each disk.

    An entry of another form is skipped, so that `differences` reports its disk as missing.
    """
    found: list[Device] = []
    for entry in listing.split():
        match entry.split(","):
            case [kind, name, number, sectors, read_only, serial_hex, own_id] if kind in DISK_KINDS and is_digits(
                sectors, _MOST_DIGITS
            ):
                found.append(
                    Device(
                        path=f"/dev/{name}",
                        number=number,
                        serial=_text(serial_hex, DISK_KINDS[kind].serial_header),
                        kind=kind,
                        size_bytes=int(sectors) * 512,
                        read_only=read_only == "1",
                        id=own_id,
                    )
                )
    return tuple(found)


def _text(in_hex: str, header: int) -> str:
    """Decode a serial, which begins after a header of some bytes."""
    try:
        return clean(bytes.fromhex(in_hex)[header:].decode(errors="replace").strip("\0 \n"))
    except ValueError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExpectedDisk:
    """How a disk or a namespace of the topology must look in the guest."""

    where: str
    kind: str
    serial: str
    size_bytes: int
    read_only: bool
    id: str = ""


def _expected(disks: Mapping[str, Disk]) -> dict[str, _ExpectedDisk]:
    """Return the disks and namespaces that the guest must have, by name."""
    found: dict[str, _ExpectedDisk] = {}
    for name, disk in disks.items():
        identity, more = blockdev.serial_of(name, disk), blockdev.namespaces(disk)
        own = {"where": f"disks.{name}", "kind": disk.type, "serial": identity}
        found[name] = _ExpectedDisk(**own, size_bytes=disk.size, read_only=disk.read_only, id="1" if more else "")
        for number, (namespace, settings) in enumerate(more.items(), start=2):
            own["where"] = f"disks.{name}.namespaces.{namespace}"
            found[namespace] = _ExpectedDisk(**own, size_bytes=settings.size, read_only=False, id=str(number))
    return found


def _matches(device: Device, expected: _ExpectedDisk) -> bool:
    return device.serial == expected.serial and expected.id in ("", device.id)


def by_name(disks: Mapping[str, Disk], found: tuple[Device, ...]) -> dict[str, Device]:
    """Return the guest's device of each disk and namespace of the topology, where there is one."""
    expected = _expected(disks)
    return {name: device for name, disk in expected.items() for device in found if _matches(device, disk)}


def by_number(disks: Mapping[str, Disk], found: tuple[Device, ...]) -> dict[str, str]:
    """Return the name of each MAJ:MIN: as in the topology, or `root disk` and `modules disk`, which every guest has."""
    own = {ROOT_SERIAL: "root disk", MODULES_SERIAL: "modules disk"}
    names = {device.number: own[device.serial] for device in found if device.serial in own}
    return names | {device.number: name for name, device in by_name(disks, found).items()}


def differences(disks: Mapping[str, Disk], found: tuple[Device, ...]) -> tuple[str, ...]:
    """Return the differences between the guest's disks and the topology, as texts."""
    expected_disks, there = _expected(disks), by_name(disks, found)
    texts: list[str] = []
    serials = Counter((device.serial, device.id if device.kind == "nvme" else "") for device in found)
    for (serial, _), times in serials.items():
        if times > 1:
            texts.append(f"serial {serial}: expected once, got {times} disks with it")
    for name, one in expected_disks.items():
        device = there.get(name)
        if device is None:
            got = ", ".join(device.serial for device in found) or "no disk"
            texts.append(f"{one.where}: expected a {one.kind} disk with serial {one.serial}, got {got}")
            continue
        if DISK_KINDS[device.kind] != DISK_KINDS[one.kind]:
            texts.append(f"{one.where}.type: expected {one.kind}, got {device.kind} ({device.path})")
        if device.size_bytes != one.size_bytes:
            texts.append(f"{one.where}.size: expected {one.size_bytes} bytes, got {device.size_bytes} ({device.path})")
        if device.read_only != one.read_only:
            expected, got = ("read-only", "writable") if one.read_only else ("writable", "read-only")
            texts.append(f"{one.where}: expected it {expected}, got a {got} {device.path}")
    own = {one.serial for one in expected_disks.values()} | {ROOT_SERIAL, MODULES_SERIAL}
    texts += [
        f"{device.path}: expected no such disk, got one with serial {device.serial!r}"
        for device in found
        if device.serial not in own
    ]
    return tuple(texts)
