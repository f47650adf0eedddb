"""Plans changes of the block nodes between a disk's device and its file while the guest runs, as QMP commands. Pure.

    device - limited-NAME - [faulty-NAME-N] - file-NAME - store-NAME or late-NAME
                                                   \\ image-NAME - origin-NAME or late-image-NAME, of an overlay

The limits node always exists (`blockdev`). Errors are injected by a blkdebug node below it; that node cannot change, so
other errors need a new one. Delays and losses are those of an export (`testbed.qemu.nbd_server`), which takes the place
of the file below the format's node. Nodes are exchanged with `blockdev-reopen` of the node above, which works for every
kind of device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from testbed.hardware.faults import Fault
from testbed.qemu import blockdev
from testbed.qemu.blockdev import Storage
from testbed.qemu.qmp_command import QmpCommand
from testbed.topology.disks import Disk


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFilters:
    """The filters of a disk. `errors`: those that blkdebug injects; `number`: that of the blkdebug node, new for each
    change of the errors; `export`: whether an export replaces the disk's file; `image`: whether one replaces the file
    of the image below an overlay.
    """

    errors: tuple[Fault, ...] = ()
    number: int = 0
    export: bool = False
    image: bool = False


PLAIN = BlockFilters()


def filter_changes(
    name: str, disk: Disk, storage: Storage | None, old: BlockFilters, new: BlockFilters
) -> tuple[QmpCommand, ...]:
    """Return the commands that change a disk's filters from `old` to `new`. `storage`: the file that holds the disk."""
    commands: list[QmpCommand] = []
    if new.export and not old.export:
        commands.append(_add(_client(f"late-{name}") | blockdev.read_only(disk)))
    if new.image and not old.image:
        commands.append(_add(_client(f"late-image-{name}") | {"read-only": True}))
    if storage is not None and storage.image is not None and new.image != old.image:
        origin = f"late-image-{name}" if new.image else f"origin-{name}"
        commands.append(_reopen(blockdev.image_node(name, storage.image[1], origin)))
    if storage is not None and _bytes_node(name, old) != _bytes_node(name, new):
        # QEMU does not notice that another process lets a file grow, as qcow2 does, so the file is opened again.
        if not new.export:
            commands.append(_add(blockdev.store_node(name, disk, storage.file)))
        commands.append(_reopen(blockdev.format_node(name, disk, storage.format, _bytes_node(name, new))))
        if not old.export:
            commands.append(_remove(f"store-{name}"))
    if new.errors and _below_limits(name, storage, old) != _below_limits(name, storage, new):
        rules = [rule for error in new.errors for rule in error.rules()]
        node = {
            "driver": "blkdebug",
            "node-name": _below_limits(name, storage, new),
            "image": _base_node(name, storage, new),
            "inject-error": rules,
        }
        commands.append(_add(node | blockdev.read_only(disk)))
    if _below_limits(name, storage, old) != _below_limits(name, storage, new):
        commands.append(_reopen(blockdev.limited_node(name, disk, _below_limits(name, storage, new))))
        if old.errors:
            commands.append(_remove(_below_limits(name, storage, old)))
    if old.export and not new.export:
        commands.append(_remove(f"late-{name}"))
    if old.image and not new.image:
        commands.append(_remove(f"late-image-{name}"))
    return tuple(commands)


def export_connections(name: str, old: BlockFilters, new: BlockFilters) -> tuple[str, ...]:
    """Return the names of the nodes that need a connection to an export before the commands of `filter_changes` run.

    QEMU must be handed these connections: it connects to nothing itself.
    """
    exports = ((f"late-{name}", old.export, new.export), (f"late-image-{name}", old.image, new.image))
    return tuple(node for node, before, now in exports if now and not before)


def _client(node: str) -> dict[str, Any]:
    return {"driver": "nbd", "node-name": node, "server": {"type": "fd", "str": node}}


def _bytes_node(name: str, filters: BlockFilters) -> str:
    """Return the node below a format's node."""
    return f"late-{name}" if filters.export else f"store-{name}"


def _base_node(name: str, storage: Storage | None, filters: BlockFilters) -> str:
    """Return the node of the disk without errors and limits. A disk without a file has no format node either."""
    return f"late-{name}" if storage is None and filters.export else f"file-{name}"


def _below_limits(name: str, storage: Storage | None, filters: BlockFilters) -> str:
    """Return the node below the limits node."""
    return f"faulty-{name}-{filters.number}" if filters.errors else _base_node(name, storage, filters)


def _add(node: dict[str, Any]) -> QmpCommand:
    return QmpCommand(execute="blockdev-add", arguments=node)


def _remove(node: str) -> QmpCommand:
    return QmpCommand(execute="blockdev-del", arguments={"node-name": node})


def _reopen(node: dict[str, Any]) -> QmpCommand:
    return QmpCommand(execute="blockdev-reopen", arguments={"options": [node]})
