"""What stands between one emulated disk and its file: block filters in QEMU, and an NBD export that delays and fails
requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed.guest.guest_monitor import GuestMonitor
from testbed.guest.launch_spec import LaunchSpec
from testbed.hardware.faults import Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.host.logfile import OnFailure
from testbed.qemu import block_filters, blockdev, nbd_export
from testbed.qemu.block_filters import PLAIN
from testbed.qemu.blockdev import Storage
from testbed.qemu.nbd_export import Export
from testbed.qemu.nbd_server.settings import Settings
from testbed.topology.disks import Disk


class DiskFilters:
    """The state of one disk or namespace: its filters, its exports, and what they do now.

    `export` serves the disk's own file, `image` the image file that the disk is an overlay of; both exist or neither.
    `hangs_until`: when a hang ends, on the clock of `time.monotonic()`; `hang_end` is the task that waits for that.
    Hold `changing` while you change a disk.
    """

    def __init__(self, name: str, owner: str, qmp: GuestMonitor, spec: LaunchSpec, on_trouble: OnFailure) -> None:
        """`owner`: the name of the disk itself, if `name` is one of its namespaces."""
        self._name, self._qmp, self._on_trouble = name, qmp, on_trouble
        self._host, self._logs = spec.host, spec.logs
        self._filters = PLAIN
        self.disk: Disk = spec.model.disks[owner]
        self.storage = _storage_of(name, owner, self.disk, spec.scratch)
        self.export: Export | None = None
        self.image: Export | None = None
        self.latency: Latency = NO_DELAY
        self.faults: tuple[Fault, ...] = ()
        self.unplugged = False
        self.hangs_until = 0.0
        self.hang_end: asyncio.Task[None] | None = None
        self.changing = asyncio.Lock()

    @property
    def exports(self) -> tuple[Export, ...]:
        """The exports that there are."""
        return tuple(export for export in (self.export, self.image) if export is not None)

    def hang_mistakes(self) -> Iterable[str]:
        """Yield the reason why a hanging disk cannot be changed.

        QEMU, and the whole guest with it, would wait for the disk's requests.
        """
        left = self.hangs_until - time.monotonic()
        if left > 0:
            yield f"it hangs for another {left:.1f} s; let it go first: hang off"

    async def require_export(self) -> Export:
        """Return the disk's export; if there is none, start it and put it in the place of the disk's file."""
        if self.export is None:
            storage = self.storage
            try:
                settings = nbd_export.export_settings(self._name, self.disk, storage)
                self.export = await self._start(self._name, settings, storage.file if storage is not None else None)
                if storage is not None and storage.image is not None:
                    image = storage.image[0].resolve()
                    self.image = await self._start(f"image-{self._name}", nbd_export.IMAGE, image)
                await self.change(export=True, image=self.image is not None)
            except BaseException:
                await self.close_exports()
                raise
        return self.export

    async def _start(self, name: str, settings: Settings, file: Path | None) -> Export:
        log = self._logs / f"export-{name}.jsonl"
        return await Export.start(name, settings, file=file, log=log, host=self._host, on_end=self._on_trouble)

    async def remove_idle_export(self) -> None:
        """Put the file back in the place of an export that has nothing to do."""
        idle = (
            self.disk.cache is None
            and self.latency.none
            and all(fault.in_qemu for fault in self.faults)
            and not any(self.hang_mistakes())
        )
        if idle and self.export is not None:
            for export in self.exports:
                await export.complete_delayed()
            await self.change(export=False, image=False)
            await self.close_exports()

    async def change(self, **changes: Any) -> None:
        """Change fields of the disk's `BlockFilters`, and QEMU's block graph with them."""
        old = self._filters
        new = replace(old, **changes)
        if new == old:
            return
        new = replace(new, number=old.number + 1)
        commands = block_filters.filter_changes(self._name, self.disk, self.storage, old, new)
        exports = {f"late-{self._name}": self.export, f"late-image-{self._name}": self.image}
        for node in block_filters.export_connections(self._name, old, new):
            export = exports[node]
            assert export is not None
            with export.client as connection:
                await self._qmp.send_file(node, connection.fileno())
        await self._qmp.run(commands)
        self._filters = new

    async def close_exports(self) -> None:
        """End the export processes."""
        exports, self.export, self.image = self.exports, None, None
        for export in exports:
            await export.close()

    async def close(self) -> None:
        """End the export processes and the task that waits for the end of a hang."""
        if self.hang_end is not None:
            self.hang_end.cancel()
            await asyncio.gather(self.hang_end, return_exceptions=True)
        await self.close_exports()


def _storage_of(name: str, owner: str, disk: Disk, scratch: Path) -> Storage | None:
    """Return the file that holds a disk or a namespace; None for a disk without one."""
    stores = blockdev.plan_storage(owner, disk, scratch)
    return dict(zip((owner, *blockdev.namespaces(disk)), stores, strict=False)).get(name)
