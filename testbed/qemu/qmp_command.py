"""QMP commands as values, and as the options of QEMU's command line that do the same. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_OPTIONS = {"blockdev-add": "-blockdev", "object-add": "-object", "device_add": "-device", "netdev_add": "-netdev"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QmpCommand:
    """One command for QEMU's monitor."""

    execute: str
    arguments: dict[str, Any] = field(default_factory=dict)


def as_options(commands: tuple[QmpCommand, ...]) -> tuple[tuple[str, str], ...]:
    """Turn commands into options of QEMU's command line, which take the same arguments as JSON."""
    return tuple((_OPTIONS[command.execute], json.dumps(command.arguments)) for command in commands)
