"""What is between a disk's device and its file, and how it is changed while the guest runs, as QMP commands. Pure.

    device - limited-NAME - [faulty-NAME-N] - file-NAME - store-NAME or late-NAME

Limits are always there (`drives`). Errors are a blkdebug node below them; it cannot change, so other errors are another node. Delays
and losses are those of an export (`testbed.export`), which the format's node is put on in place of the file. Nodes are exchanged with
`blockdev-reopen` of the one above, which works for every kind of device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed import drives
from testbed.drives import QmpCommand
from testbed.hardware.faults import Fault
from testbed.topology.disks import Disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What a disk has. `errors`: those that blkdebug injects; `number`: of the blkdebug node, which is new for other errors;
    `export`: the socket of the export that is in the file's place.
    """

    errors: tuple[Fault, ...] = ()
    number: int = 0
    export: Path | None = None


PLAIN = Layers()


def changed(name: str, disk: Disk, kind: str, old: Layers, new: Layers) -> tuple[QmpCommand, ...]:
    """The commands from one to the other. `kind`: the format of what the disk is kept in, as QEMU calls it."""
    commands: list[QmpCommand] = []
    if new.export is not None and old.export is None:
        server = {"type": "unix", "path": str(new.export)}
        commands.append(_add({"driver": "nbd", "node-name": f"late-{name}", "server": server, **drives.read_only(disk)}))
    if _has_file(disk) and _bytes(name, disk, old) != _bytes(name, disk, new):
        commands.append(_reopen(drives.format_node(name, disk, kind, _bytes(name, disk, new))))
    if new.errors and _top(name, disk, old) != _top(name, disk, new):
        rules = [rule for error in new.errors for rule in error.rules()]
        node = {"driver": "blkdebug", "node-name": _top(name, disk, new), "image": _base(name, disk, new), "inject-error": rules}
        commands.append(_add(node | drives.read_only(disk)))
    if _top(name, disk, old) != _top(name, disk, new):
        commands.append(_reopen(drives.limited_node(name, disk, _top(name, disk, new))))
        if old.errors:
            commands.append(QmpCommand(execute="blockdev-del", arguments={"node-name": _top(name, disk, old)}))
    if old.export is not None and new.export is None:
        commands.append(QmpCommand(execute="blockdev-del", arguments={"node-name": f"late-{name}"}))
    return tuple(commands)


def _has_file(disk: Disk) -> bool:
    return disk.format != "null-co"


def _bytes(name: str, disk: Disk, layers: Layers) -> str:
    """The node that a format's node is on."""
    return f"store-{name}" if layers.export is None else f"late-{name}"


def _base(name: str, disk: Disk, layers: Layers) -> str:
    """The node of the disk itself: without errors and limits. A disk without a file has no format either."""
    return f"file-{name}" if _has_file(disk) or layers.export is None else f"late-{name}"


def _top(name: str, disk: Disk, layers: Layers) -> str:
    """The node that the limits are on."""
    return f"faulty-{name}-{layers.number}" if layers.errors else _base(name, disk, layers)


def _add(node: dict[str, Any]) -> QmpCommand:
    return QmpCommand(execute="blockdev-add", arguments=node)


def _reopen(node: dict[str, Any]) -> QmpCommand:
    return QmpCommand(execute="blockdev-reopen", arguments={"options": [node]})
