"""What QEMU says of errors of its disks, and of a guest that stands still, for one (`rerror`, `werror`: stop) or otherwise. Pure.

What became of an error is told by the event BLOCK_IO_ERROR, but not always: QEMU 10 tells one a second for each disk, and no QEMU tells of
NVMe's. Those that reached the guest are counted as well (`failed_rd_operations` and the like in `query-blockstats`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_ACTIONS = {"report": "reported", "ignore": "ignored", "stop": "stopped the guest"}
_NO_ERROR = "stopped, by a debugger or by `stop` of QMP"


def failed_requests(blockstats: Iterable[Mapping[str, Any]], disk: str) -> dict[str, int]:
    """How many requests of each operation an emulated disk has failed, by `query-blockstats`; a flush is a write, as in events."""
    of = next((entry["stats"] for entry in blockstats if f"disk-{disk}" in str(entry.get("qdev", "")).split("/")), None)
    if of is None:
        return {}
    return {"read": of["failed_rd_operations"], "write": of["failed_wr_operations"] + of["failed_flush_operations"]}


class IoErrors:
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
        elif event == "STOP" and not self.stopped:
            self._stop(_NO_ERROR)
        elif event == "RESUME" and self.stopped:
            self._stop("")

    def _stop(self, why: str) -> None:
        self.stopped = why
        self.on_stop()

    def said(self, disk: str, counted: Mapping[str, int]) -> list[str]:
        """Such as `3 read errors reported`. `counted`: what `failed` says."""
        found = {
            (operation, action): count for (name, operation, action), count in self._counted.items() if name == disk
        }
        for operation, count in counted.items():
            found[operation, "report"] = max(count, found.get((operation, "report"), 0))
        return [
            f"{count} {operation} error{'s' if count > 1 else ''} {_ACTIONS.get(action, action)}"
            for (operation, action), count in found.items()
            if count
        ]
