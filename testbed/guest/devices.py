"""The guest's disks as its agent lists them, compared with the topology."""

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
    """One whole disk in the guest. `number` is MAJ:MIN as io.stat writes it; `id` its number among disks of one serial, or empty."""

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
    """How many whole disks the guest has of these."""
    return sum(1 + len(blockdev.namespaces(disk)) for disk in disks.values())


def parse(listing: str) -> tuple[Device, ...]:
    """The disks of the agent's answer, `KIND,NAME,MAJ:MIN,SECTORS,READ-ONLY,SERIAL-IN-HEX,ID` each.

    What does not have this form is left out, and so missed by `differences`.
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
    try:
        return clean(bytes.fromhex(in_hex)[header:].decode(errors="replace").strip("\0 \n"))
    except ValueError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a disk or a namespace must be in the guest."""

    where: str
    kind: str
    serial: str
    size_bytes: int
    read_only: bool
    id: str = ""


def _wanted(disks: Mapping[str, Disk]) -> dict[str, _Wanted]:
    found: dict[str, _Wanted] = {}
    for name, disk in disks.items():
        identity, more = blockdev.serial_of(name, disk), blockdev.namespaces(disk)
        own = {"where": f"disks.{name}", "kind": disk.type, "serial": identity}
        found[name] = _Wanted(**own, size_bytes=disk.size, read_only=disk.read_only, id="1" if more else "")
        for number, (other, one) in enumerate(more.items(), start=2):
            own["where"] = f"disks.{name}.namespaces.{other}"
            found[other] = _Wanted(**own, size_bytes=one.size, read_only=False, id=str(number))
    return found


def _is(device: Device, wanted: _Wanted) -> bool:
    return device.serial == wanted.serial and wanted.id in ("", device.id)


def by_name(disks: Mapping[str, Disk], found: tuple[Device, ...]) -> dict[str, Device]:
    """The guest's device of each disk and namespace of the topology that is there."""
    wanted = _wanted(disks)
    return {name: device for name, one in wanted.items() for device in found if _is(device, one)}


def by_number(disks: Mapping[str, Disk], found: tuple[Device, ...]) -> dict[str, str]:
    """What each MAJ:MIN is called: a disk or a namespace as in the topology, those that every guest has `root disk` and `modules disk`."""
    own = {ROOT_SERIAL: "root disk", MODULES_SERIAL: "modules disk"}
    names = {device.number: own[device.serial] for device in found if device.serial in own}
    return names | {device.number: name for name, device in by_name(disks, found).items()}


def differences(disks: Mapping[str, Disk], found: tuple[Device, ...]) -> tuple[str, ...]:
    """What the guest has otherwise than the topology says; empty where they agree."""
    wanted, there = _wanted(disks), by_name(disks, found)
    said: list[str] = []
    for text, times in Counter((device.serial, device.id if device.kind == "nvme" else "") for device in found).items():
        if times > 1:
            said.append(f"serial {text[0]}: expected once, got {times} disks with it")
    for name, one in wanted.items():
        device = there.get(name)
        if device is None:
            serials = ", ".join(device.serial for device in found) or "no disk"
            said.append(f"{one.where}: expected a {one.kind} disk with serial {one.serial}, got {serials}")
            continue
        if DISK_KINDS[device.kind] != DISK_KINDS[one.kind]:
            said.append(f"{one.where}.type: expected {one.kind}, got {device.kind} ({device.path})")
        if device.size_bytes != one.size_bytes:
            said.append(f"{one.where}.size: expected {one.size_bytes} bytes, got {device.size_bytes} ({device.path})")
        if device.read_only != one.read_only:
            expected, got = ("read-only", "writable") if one.read_only else ("writable", "read-only")
            said.append(f"{one.where}: expected it {expected}, got a {got} {device.path}")
    own = {one.serial for one in wanted.values()} | {ROOT_SERIAL, MODULES_SERIAL}
    said += [
        f"{device.path}: expected no such disk, got one with serial {device.serial!r}"
        for device in found
        if device.serial not in own
    ]
    return tuple(said)
