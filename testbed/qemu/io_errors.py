"""Counts the I/O errors of a guest's disks, and tells why QEMU has stopped the guest: after an error (`rerror`,
`werror`: stop) or otherwise. Pure.

The event BLOCK_IO_ERROR reports what QEMU did with an error, but not always: QEMU 10 sends one a second for each disk,
and no QEMU sends any for NVMe. So errors that reached the guest are also taken from `failed_rd_operations` and the like
of `query-blockstats`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_ACTIONS = {"report": "reported", "ignore": "ignored", "stop": "stopped the guest"}
_NO_ERROR = "stopped, by a debugger or by `stop` of QMP"


def failed_requests(blockstats: Iterable[Mapping[str, Any]], disk: str) -> dict[str, int]:
    """Return how many requests of each operation an emulated disk has failed, from `query-blockstats`; a flush counts
    as a write, as in events.
    """
    stats = next(
        (entry["stats"] for entry in blockstats if f"disk-{disk}" in str(entry.get("qdev", "")).split("/")), None
    )
    if stats is None:
        return {}
    return {
        "read": stats["failed_rd_operations"],
        "write": stats["failed_wr_operations"] + stats["failed_flush_operations"],
    }


class IoErrors:
    """The errors of one guest. `stopped`: why it stands still, or empty; `on_stop`: called at each change of that."""

    def __init__(self) -> None:
        self._events: Counter[tuple[str, str, str]] = Counter()
        self.stopped = ""
        self.on_stop: Callable[[], None] = lambda: None

    def on_event(self, event: str, data: Mapping[str, Any]) -> None:
        """Handle an event of QEMU's monitor."""
        if event == "BLOCK_IO_ERROR":
            disk = str(data.get("node-name", "")).removeprefix("limited-")
            operation, action = str(data.get("operation")), str(data.get("action"))
            self._events[disk, operation, action] += 1
            if action == "stop" and not self.stopped:
                self._stop(f"stopped at a {operation} error of disk {disk} ({data.get('reason', 'no reason')})")
        elif event == "STOP" and not self.stopped:
            self._stop(_NO_ERROR)
        elif event == "RESUME" and self.stopped:
            self._stop("")

    def _stop(self, why: str) -> None:
        self.stopped = why
        self.on_stop()

    def describe(self, disk: str, failed: Mapping[str, int]) -> list[str]:
        """Describe a disk's errors, such as `3 read errors reported`. `failed`: the result of `failed_requests`."""
        counts = {
            (operation, action): count for (name, operation, action), count in self._events.items() if name == disk
        }
        for operation, count in failed.items():
            counts[operation, "report"] = max(count, counts.get((operation, "report"), 0))
        return [
            f"{count} {operation} error{'s' if count > 1 else ''} {_ACTIONS.get(action, action)}"
            for (operation, action), count in counts.items()
            if count
        ]
