"""Plans a topology's disks as QEMU's block nodes and devices: the files to make first, then QMP commands in their
order. Pure.

The same commands, as options of the command line, make a cold-plugged disk.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.hardware.disk_kinds import serial
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.profiles import PROFILES
from testbed.hardware.throttle import Throttle
from testbed.qemu.qmp_command import QmpCommand
from testbed.topology.disks import Disk, Limits, Namespace, Nvme, VirtioBlk, VirtioScsi, Zoned
from testbed.topology.model import GuestModel
from testbed.units import MIB

_READ_ONLY = {"read-only": True}
_UUIDS = uuid.UUID("6c6f6f70-0000-4000-8000-636772747374")


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A file that holds a disk or a namespace, made before QEMU opens it: a sparse file, or a qcow2 made by qemu-img.

    `image`: the file below an overlay, and that file's format.
    """

    file: Path
    format: str
    size_bytes: int
    image: tuple[Path, str] | None = None


def throttle_of(disk: Disk) -> Throttle:
    """Return the limits of a disk: its own, its profile's, or none."""
    if disk.profile is not None:
        return PROFILES[disk.profile].scaled(disk.scale or 1).throttle
    return disk.throttle.throttle() if disk.throttle is not None else Throttle()


def latency_of(disk: Disk) -> Latency:
    """Return the delays of a disk: its own, its profile's, or none."""
    if disk.latency is not None:
        return disk.latency.latency()
    return PROFILES[disk.profile].scaled(disk.scale or 1).latency if disk.profile is not None else NO_DELAY


def serial_of(name: str, disk: Disk) -> str:
    """Return the serial number by which the guest finds a disk."""
    return disk.serial or serial(name)


def namespaces(disk: Disk) -> Mapping[str, Namespace]:
    """Return a disk's additional NVMe namespaces."""
    return disk.namespaces if isinstance(disk, Nvme) else {}


def most_bytes(disk: Disk) -> int:
    """Return the largest size that the file of a disk can reach.

    For each 64 KiB of data a qcow2 file holds 10 more bytes (8 in an L2 table, 2 of a reference count:
    docs/interop/qcow2.txt), in whole clusters, and a header.
    """
    return disk.size if disk.format == "null-co" else disk.size + disk.size // 1024 + 16 * MIB


def plan_storage(name: str, disk: Disk, folder: Path) -> tuple[Storage, ...]:
    """Return the files to make before a disk is plugged in, in the guest's own `folder`."""
    if disk.format == "null-co":
        return ()
    image = None
    if disk.image is not None:
        image = (Path(disk.image), disk.image_kind)
    kind = "qcow2" if image is not None else disk.format
    own = Storage(file=folder / f"{name}.{kind}", format=kind, size_bytes=disk.size, image=image)
    more = (
        Storage(file=folder / f"{other}.raw", format="raw", size_bytes=one.size)
        for other, one in namespaces(disk).items()
    )
    return (own, *more)


def throttle_groups(limits: Mapping[str, Limits]) -> tuple[QmpCommand, ...]:
    """Return the commands for the throttle groups that several disks share; they come before the first disk."""
    return tuple(_group(f"group-{name}", of.throttle()) for name, of in limits.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCommands:
    """The commands for a guest's disks and their shared limits: those for the command line, and those to run in the
    booted guest.
    """

    cold: tuple[QmpCommand, ...]
    hot: tuple[QmpCommand, ...]


def plan_disks(guest: GuestModel, stores: Mapping[str, tuple[Storage, ...]]) -> DiskCommands:
    """Plan all disks of a guest, each in the root port of its place in the topology.

    `stores`: the files of each disk.
    """
    shared = throttle_groups(guest.throttle_groups)
    cold: tuple[QmpCommand, ...] = shared if guest.boots_cold else ()
    hot: tuple[QmpCommand, ...] = () if guest.boots_cold else shared
    for port, (name, disk) in enumerate(guest.disks.items()):
        if disk.cold:
            cold += plug_commands(name, disk, port, stores[name])
        else:
            hot += plug_commands(name, disk, port, stores[name])
    return DiskCommands(cold=cold, hot=hot)


def _group(name: str, throttle: Throttle) -> QmpCommand:
    return QmpCommand(
        execute="object-add", arguments={"qom-type": "throttle-group", "id": name, "limits": throttle.limits()}
    )


def plug_commands(name: str, disk: Disk, port: int, made: tuple[Storage, ...]) -> tuple[QmpCommand, ...]:
    """Return the commands that plug a disk into the root port of that number."""
    commands = list(_nodes(name, disk, made))
    bus, identity = f"port{port}", serial_of(name, disk)
    device: dict[str, Any] = {"id": f"disk-{name}", "drive": top_node(name), **_geometry(disk)}
    match disk:
        case VirtioBlk():
            if disk.io_thread:
                commands.append(
                    QmpCommand(execute="object-add", arguments={"qom-type": "iothread", "id": f"io-{name}"})
                )
                device["iothread"] = f"io-{name}"
            device |= {
                "driver": "virtio-blk-pci",
                "bus": bus,
                "serial": identity,
                **({} if disk.discard else {"discard": False}),
            }
            device |= {"rerror": disk.rerror, "werror": disk.werror}
            device |= _without_none({"num-queues": disk.queues, "queue-size": disk.queue_size})
            commands.append(QmpCommand(execute="device_add", arguments=device))
        case Nvme(namespaces=more, zoned=zoned) if more or zoned:
            controller = {"driver": "nvme", "id": f"controller-{name}", "bus": bus, "serial": identity}
            controller |= _without_none({"max_ioqpairs": disk.queues})
            commands.append(QmpCommand(execute="device_add", arguments=controller))
            commands += _namespaces(name, disk, device, zoned)
        case Nvme():
            device |= {"driver": "nvme", "bus": bus, "serial": identity, **_without_none({"max_ioqpairs": disk.queues})}
            commands.append(QmpCommand(execute="device_add", arguments=device))
        case VirtioScsi():
            controller = {
                "driver": "virtio-scsi-pci",
                "id": f"controller-{name}",
                "bus": bus,
                **_without_none({"num_queues": disk.queues}),
            }
            commands.append(QmpCommand(execute="device_add", arguments=controller))
            device |= {"driver": "scsi-hd", "bus": f"controller-{name}.0", "serial": identity}
            device |= {"rerror": disk.rerror, "werror": disk.werror}
            commands.append(QmpCommand(execute="device_add", arguments=device))
    return tuple(commands)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _geometry(disk: Disk) -> dict[str, Any]:
    """Return the properties that every kind of disk has, where they differ from QEMU's defaults."""
    properties: dict[str, Any] = {}
    if disk.logical_block_size != 512 or disk.physical_block_size is not None:
        properties["logical_block_size"] = disk.logical_block_size
        properties["physical_block_size"] = max(disk.physical_block_size or 0, disk.logical_block_size)
    if not disk.write_cache:
        properties["write-cache"] = "off"
    return properties


def _namespaces(name: str, disk: Nvme, first: dict[str, Any], zoned: Zoned | None) -> Iterator[QmpCommand]:
    bus = {"driver": "nvme-ns", "bus": f"controller-{name}"}
    yield QmpCommand(
        execute="device_add",
        arguments={**first, **bus, "nsid": 1, "uuid": str(uuid.uuid5(_UUIDS, name)), **_zones(zoned)},
    )
    for number, (other, one) in enumerate(disk.namespaces.items(), start=2):
        own: dict[str, Any] = {
            "id": f"disk-{other}",
            "drive": top_node(other),
            "nsid": number,
            "uuid": str(uuid.uuid5(_UUIDS, other)),
        }
        if one.logical_block_size != 512:
            own |= {"logical_block_size": one.logical_block_size, "physical_block_size": one.logical_block_size}
        yield QmpCommand(execute="device_add", arguments={**own, **bus, **_zones(one.zoned)})


def _zones(zoned: Zoned | None) -> dict[str, Any]:
    if zoned is None:
        return {}
    return {
        "zoned": True,
        "zoned.zone_size": zoned.zone_size,
        "zoned.max_open": zoned.max_open,
        "zoned.max_active": zoned.max_active,
    }


def _nodes(name: str, disk: Disk, made: tuple[Storage, ...]) -> Iterator[QmpCommand]:
    """Yield the commands for the block nodes of a disk and its namespaces, for each from the bottom up.

    `store-NAME` accesses the bytes of its file, `file-NAME` its format, and `limited-NAME` applies the limits. The
    limits node always exists, often without a limit, so that limits can change and another node can be inserted below
    it, whatever the kind of the device (see `block_filters`). An overlay also has `origin-NAME`, the bytes of its
    image, and `image-NAME`, the image's format.
    """
    own = read_only(disk)
    if disk.format == "null-co":
        null = {"driver": "null-co", "node-name": f"file-{name}", "size": disk.size, "read-zeroes": True}
        yield QmpCommand(execute="blockdev-add", arguments=null | own)
    else:
        for part, store in zip((name, *namespaces(disk)), made, strict=True):
            yield QmpCommand(execute="blockdev-add", arguments=store_node(part, disk, store.file))
            if store.image is not None:
                yield QmpCommand(
                    execute="blockdev-add", arguments=_file_node(f"origin-{part}", store.image[0]) | _READ_ONLY
                )
                yield QmpCommand(execute="blockdev-add", arguments=image_node(part, store.image[1], f"origin-{part}"))
            yield QmpCommand(execute="blockdev-add", arguments=format_node(part, disk, store.format, f"store-{part}"))
    for part in (name, *namespaces(disk)):
        group = throttle_group(part, disk)
        if group == f"throttle-{part}":
            yield _group(group, throttle_of(disk) if part == name else Throttle())
        yield QmpCommand(execute="blockdev-add", arguments=limited_node(part, disk, f"file-{part}"))


def store_node(name: str, disk: Disk, file: Path) -> dict[str, Any]:
    """Return the node for the bytes of a disk's file."""
    return _file_node(f"store-{name}", file) | read_only(disk)


def _file_node(node: str, file: Path) -> dict[str, Any]:
    return {"driver": "file", "node-name": node, "filename": str(file)}


def image_node(name: str, kind: str, below: str) -> dict[str, Any]:
    """Return the node for the image below an overlay; the node `below` accesses the image's bytes."""
    return {"driver": kind, "node-name": f"image-{name}", "file": below, **_backing(kind, None), **_READ_ONLY}


def _backing(kind: str, node: str | None) -> dict[str, Any]:
    """Set the node below a qcow2, or none, whatever file its header names."""
    return {"backing": node} if kind == "qcow2" else {}


def format_node(name: str, disk: Disk, kind: str, below: str) -> dict[str, Any]:
    """Return the node for a disk's format; the node `below` accesses the bytes."""
    return {
        "driver": kind,
        "node-name": f"file-{name}",
        "file": below,
        "discard": "unmap" if disk.discard else "ignore",
        **_backing(kind, f"image-{name}" if disk.image is not None else None),
        **read_only(disk),
    }


def limited_node(name: str, disk: Disk, below: str) -> dict[str, Any]:
    """Return the node that the device of a disk or of a namespace is attached to."""
    node = {
        "driver": "throttle",
        "node-name": top_node(name),
        "throttle-group": throttle_group(name, disk),
        "file": below,
    }
    return node | read_only(disk)


def read_only(disk: Disk) -> dict[str, Any]:
    """Return the property that nodes of a read-only disk have in addition."""
    return _READ_ONLY if disk.read_only else {}


def throttle_group(name: str, disk: Disk) -> str:
    """Return the QOM object with the limits of a disk or of one of its namespaces: its own, or one that it shares."""
    shared = disk.throttle_group is not None and name not in namespaces(disk)
    return f"group-{disk.throttle_group}" if shared else f"throttle-{name}"


def top_node(name: str) -> str:
    """Return the block node that the device is attached to."""
    return f"limited-{name}"


def pci_device(name: str, disk: Disk) -> str:
    """Return the id of the device in the root port: the disk itself, or its controller."""
    has_controller = isinstance(disk, VirtioScsi) or (isinstance(disk, Nvme) and bool(disk.namespaces or disk.zoned))
    return f"controller-{name}" if has_controller else f"disk-{name}"


def unplug_commands(name: str, disk: Disk) -> tuple[QmpCommand, ...]:
    """Return the commands that remove what `plug_commands` made, once the guest has released the device."""
    commands = []
    if isinstance(disk, VirtioBlk) and disk.io_thread:
        commands.append(QmpCommand(execute="object-del", arguments={"id": f"io-{name}"}))
    for part in (name, *namespaces(disk)):
        nodes = ["limited", "file", *(["store"] if disk.format != "null-co" else [])]
        nodes += ["image", "origin"] if disk.image is not None and part == name else []
        commands += [QmpCommand(execute="blockdev-del", arguments={"node-name": f"{node}-{part}"}) for node in nodes]
        if throttle_group(part, disk) == f"throttle-{part}":
            commands.append(QmpCommand(execute="object-del", arguments={"id": f"throttle-{part}"}))
    return tuple(commands)
