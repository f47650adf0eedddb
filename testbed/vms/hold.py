"""Holds the guest that has shown a bug under a name, so that every other command can reach it, until it is told to
end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from testbed.errors import TestbedError, UsageError
from testbed.guest.guest import Guest
from testbed.host import registry
from testbed.host.paths import Folders
from testbed.host.registry import VmRecord
from testbed.vms import control, ssh_config
from testbed.vms.control import ControlServer, Reply, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """How to hold a guest: its `name`, the private `key` that its SSH server takes, and `announce`, called with how to
    enter it."""

    folders: Folders
    name: str
    file: str
    key: str
    paused: bool
    announce: Callable[[str], None]

    async def hold(self, guest: Guest, why: str) -> None:
        """Hold a guest until `down` or until it is lost. One that has panicked or ended is stopped, with its memory for
        gdb and dumps.

        :raise UsageError: the name is taken.
        """
        with registry.claim_name(self.folders, self.name) as folder:
            connect_s = guest.deadlines.command_s
            ssh_config.write_ssh_files(folder, self.name, self.key, guest.host_key.public, connect_s=connect_s)
            held = _HeldGuest(name=self.name, folder=folder, guest=guest, record=self._record(guest, why))
            held.write_record()
            async with held.serve():
                self.announce(self._instructions(held.ended))
                await held.wait()

    def _record(self, guest: Guest, why: str) -> VmRecord:
        model, spec = guest.model, guest.spec
        ended = guest.loss is not None
        return VmRecord(
            name=self.name,
            state=registry.ENDED if ended else registry.READY,
            topology=self.file,
            point="",
            guest=guest.name,
            kernel=spec.files.bzimage.parent.name.rpartition("-")[0],  # without the cache's key
            release="",
            memory_bytes=model.memory,
            cpus=model.cpus,
            disks=tuple(model.disks),
            loops=tuple(model.loops),
            evidence=str(spec.logs),
            supervisor=os.getpid(),
            since=time.time(),
            networks="",
            qemu=guest.pid,
            why=f"held: {why}" + ("; its memory is there for gdb and dumps" if ended else ""),
        )

    def _instructions(self, ended: bool) -> str:
        enter = f"enter it:  testbed ssh {self.name}    testbed console {self.name}"
        if ended:
            enter = "it has ended and stands still: nothing in it answers any longer"
        elif self.paused:
            enter = f"it stands still; let it go on with: testbed resume {self.name}\n    {enter}"
        return "\n".join(
            (
                f"{self.name} is held at the moment of the signature",
                f"    {enter}",
                f"    debug it:  testbed gdb {self.name}    testbed dump {self.name} FILE",
                f"    end it:    testbed down {self.name}    or Ctrl-C here",
            )
        )


@dataclass(slots=True, kw_only=True)
class _HeldGuest:
    """A guest while it is held: its record, and the sockets by which other commands reach it."""

    name: str
    folder: Path
    guest: Guest
    record: VmRecord
    _down: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether the guest had ended when the hold began."""
        return self.record.state == registry.ENDED

    def write_record(self) -> None:
        """Write the guest's record, which says whether it is stopped at a disk error."""
        record = self.record
        if self.guest.hardware.errors.stopped and not self.ended:
            why = f"{record.why}; it stands still"
            record = replace(record, why=why, resume_with=f"testbed resume {self.name}")
        registry.write_record(self.folder, record)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve the control, console and SSH sockets."""
        guest, folder = self.guest, self.folder
        verbs = {
            **ControlServer(self.name, self._ready).verbs,
            "down": lambda _: self._end(),
            **dict.fromkeys(("snapshot", "restore", "power-cut"), self._refuse),
        }
        guest.hardware.errors.on_stop = self.write_record
        try:
            async with (
                control.listen(
                    folder / "control", lambda reader, writer: control.answer_request(self.name, verbs, reader, writer)
                ),
                control.listen(
                    folder / "console", lambda reader, writer: control.stream_console(guest, reader, writer)
                ),
                control.serve_ssh_connections(folder, guest),
            ):
                yield
        finally:
            guest.hardware.errors.on_stop = lambda: None  # the record is removed

    async def wait(self) -> None:
        """Wait for `down`, or until the guest is lost."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._down.wait())]
        waits += [] if self.ended else [asyncio.create_task(self.guest.lost())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _ready(self) -> Guest:
        if self.guest.loss is not None and not self.ended:
            raise TestbedError(f"{self.name} is lost")
        return self.guest

    async def _end(self) -> Reply:
        self._down.set()
        return {}

    async def _refuse(self, request: Request) -> Reply:
        raise UsageError(
            f"{self.name} is held by `testbed repro --hold`, in the middle of a try: it can be entered, debugged and"
            f" dumped, not asked for {request['verb']}"
        )
