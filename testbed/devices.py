"""The guest's disks as its agent lists them, compared with the topology."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.console import clean
from testbed.hardware.disks import DISK_KINDS, MODULES_SERIAL, ROOT_SERIAL, serial
from testbed.topology.model import Disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One whole disk in the guest. `number` is MAJ:MIN as io.stat writes it."""

    path: str
    number: str
    serial: str
    kind: str
    size_bytes: int
    read_only: bool


def query(count: int) -> dict[str, str]:
    """What the agent is asked: to wait for `count` disks, and where each kind of disk is to be found."""
    return {"count": str(count), **{name: f"{kind.guest_prefix},{kind.guest_serial}" for name, kind in DISK_KINDS.items()}}


def parse(listing: str) -> tuple[Device, ...]:
    """The disks of the agent's answer, `KIND,NAME,MAJ:MIN,SECTORS,READ-ONLY,SERIAL-IN-HEX` each.

    What does not have this form is left out, and so missed by `differences`.
    """
    found: list[Device] = []
    for entry in listing.split():
        match entry.split(","):
            case [kind, name, number, sectors, read_only, serial_hex] if kind in DISK_KINDS and sectors.isdecimal():
                found.append(
                    Device(
                        path=f"/dev/{name}",
                        number=number,
                        serial=_text(serial_hex),
                        kind=kind,
                        size_bytes=int(sectors) * 512,
                        read_only=read_only == "1",
                    )
                )
    return tuple(found)


def _text(in_hex: str) -> str:
    try:
        return clean(bytes.fromhex(in_hex).decode(errors="replace").strip())
    except ValueError:
        return ""


def by_name(disks: Mapping[str, Disk], found: tuple[Device, ...]) -> dict[str, Device]:
    """The guest's device of each disk of the topology that is there."""
    serials = {device.serial: device for device in found}
    return {name: serials[serial(name)] for name in disks if serial(name) in serials}


def differences(disks: Mapping[str, Disk], found: tuple[Device, ...]) -> tuple[str, ...]:
    """What the guest has otherwise than the topology says; empty where they agree."""
    said: list[str] = []
    serials = [device.serial for device in found]
    said += [
        f"serial {text}: expected once, got {serials.count(text)} disks with it"
        for text in dict.fromkeys(serials)
        if serials.count(text) > 1
    ]
    there = by_name(disks, found)
    for name, disk in disks.items():
        device = there.get(name)
        if device is None:
            said.append(f"disks.{name}: expected a {disk.type} disk with serial {serial(name)}, got {', '.join(serials) or 'no disk'}")
            continue
        if device.kind != disk.type:
            said.append(f"disks.{name}.type: expected {disk.type}, got {device.kind} ({device.path})")
        if device.size_bytes != disk.size:
            said.append(f"disks.{name}.size: expected {disk.size} bytes, got {device.size_bytes} ({device.path})")
        if device.read_only:
            said.append(f"disks.{name}: expected it writable, got a read-only {device.path}")
    own = {serial(name) for name in disks} | {ROOT_SERIAL, MODULES_SERIAL}
    said += [f"{device.path}: expected no such disk, got one with serial {device.serial!r}" for device in found if device.serial not in own]
    return tuple(said)
