"""What is between a disk's device and its file, and how it is changed while the guest runs, as QMP commands. Pure.

    device - limited-NAME - [faulty-NAME-N] - file-NAME - store-NAME or late-NAME
                                                   \\ image-NAME - origin-NAME or late-image-NAME, of an overlay

Limits are always there (`drives`). Errors are a blkdebug node below them; it cannot change, so other errors are another node. Delays
and losses are those of an export (`testbed.qemu.nbd_server`), which the format's node is put on in place of the file. Nodes are exchanged with
`blockdev-reopen` of the one above, which works for every kind of device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from testbed.hardware.faults import Fault
from testbed.qemu import blockdev
from testbed.qemu.blockdev import Storage
from testbed.qemu.qmp import QmpCommand
from testbed.topology.disks import Disk


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFilters:
    """What a disk has. `errors`: those that blkdebug injects; `number`: of the blkdebug node, which is new for other errors;
    `export`: whether an export is in the file's place; `image`: whether one is in place of the image's.
    """

    errors: tuple[Fault, ...] = ()
    number: int = 0
    export: bool = False
    image: bool = False


PLAIN = BlockFilters()


def filter_changes(
    name: str, disk: Disk, kept: Storage | None, old: BlockFilters, new: BlockFilters
) -> tuple[QmpCommand, ...]:
    """The commands from one to the other. `kept`: what the disk is kept in."""
    commands: list[QmpCommand] = []
    if new.export and not old.export:
        commands.append(_add(_client(f"late-{name}") | blockdev.read_only(disk)))
    if new.image and not old.image:
        commands.append(_add(_client(f"late-image-{name}") | {"read-only": True}))
    if kept is not None and kept.image is not None and new.image != old.image:
        origin = f"late-image-{name}" if new.image else f"origin-{name}"
        commands.append(_reopen(blockdev.image_node(name, kept.image[1], origin)))
    if kept is not None and _bytes(name, old) != _bytes(name, new):
        # QEMU does not see that somebody else lets a file grow, as qcow2 does: it is opened anew.
        if not new.export:
            commands.append(_add(blockdev.store_node(name, disk, kept.file)))
        commands.append(_reopen(blockdev.format_node(name, disk, kept.format, _bytes(name, new))))
        if not old.export:
            commands.append(_remove(f"store-{name}"))
    if new.errors and _top(name, kept, old) != _top(name, kept, new):
        rules = [rule for error in new.errors for rule in error.rules()]
        node = {
            "driver": "blkdebug",
            "node-name": _top(name, kept, new),
            "image": _base(name, kept, new),
            "inject-error": rules,
        }
        commands.append(_add(node | blockdev.read_only(disk)))
    if _top(name, kept, old) != _top(name, kept, new):
        commands.append(_reopen(blockdev.limited_node(name, disk, _top(name, kept, new))))
        if old.errors:
            commands.append(_remove(_top(name, kept, old)))
    if old.export and not new.export:
        commands.append(_remove(f"late-{name}"))
    if old.image and not new.image:
        commands.append(_remove(f"late-image-{name}"))
    return tuple(commands)


def export_connections(name: str, old: BlockFilters, new: BlockFilters) -> tuple[str, ...]:
    """The connections that QEMU must be handed, by the names of their nodes, before the commands of `changed`: it connects to nothing
    itself.
    """
    wanted = ((f"late-{name}", old.export, new.export), (f"late-image-{name}", old.image, new.image))
    return tuple(node for node, before, now in wanted if now and not before)


def _client(node: str) -> dict[str, Any]:
    return {"driver": "nbd", "node-name": node, "server": {"type": "fd", "str": node}}


def _bytes(name: str, layers: BlockFilters) -> str:
    """The node that a format's node is on."""
    return f"late-{name}" if layers.export else f"store-{name}"


def _base(name: str, kept: Storage | None, layers: BlockFilters) -> str:
    """The node of the disk itself: without errors and limits. A disk without a file has no format either."""
    return f"late-{name}" if kept is None and layers.export else f"file-{name}"


def _top(name: str, kept: Storage | None, layers: BlockFilters) -> str:
    """The node that the limits are on."""
    return f"faulty-{name}-{layers.number}" if layers.errors else _base(name, kept, layers)


def _add(node: dict[str, Any]) -> QmpCommand:
    return QmpCommand(execute="blockdev-add", arguments=node)


def _remove(node: str) -> QmpCommand:
    return QmpCommand(execute="blockdev-del", arguments={"node-name": node})


def _reopen(node: dict[str, Any]) -> QmpCommand:
    return QmpCommand(execute="blockdev-reopen", arguments={"options": [node]})
