"""What QEMU says of errors of its disks (BLOCK_IO_ERROR), and of a guest that stands still for one (`rerror`, `werror`: stop). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

_ACTIONS = {"report": "reported", "ignore": "ignored", "stop": "stopped the guest"}


class DiskErrors:
    """Of one guest. `stopped`: why it stands still, or nothing; `on_stop` hears of each change of that."""

    def __init__(self) -> None:
        self._counted: Counter[tuple[str, str, str]] = Counter()
        self.stopped = ""
        self.on_stop: Callable[[], None] = lambda: None

    def hear(self, event: str, data: Mapping[str, Any]) -> None:
        """An event of QEMU's monitor."""
        if event == "BLOCK_IO_ERROR":
            disk = str(data.get("node-name", "")).removeprefix("limited-")
            operation, action = str(data.get("operation")), str(data.get("action"))
            self._counted[disk, operation, action] += 1
            if action == "stop" and not self.stopped:
                self._stop(f"stopped at a {operation} error of disk {disk} ({data.get('reason', 'no reason')})")
        elif event == "RESUME" and self.stopped:
            self._stop("")

    def _stop(self, why: str) -> None:
        self.stopped = why
        self.on_stop()

    def said(self, disk: str) -> list[str]:
        """Such as `3 read errors reported`."""
        return [
            f"{count} {operation} error{'s' if count > 1 else ''} {_ACTIONS.get(action, action)}"
            for (name, operation, action), count in self._counted.items()
            if name == disk
        ]
