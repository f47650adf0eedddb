"""Holds the guest that has shown a bug, under a name by which every other command knows it, until somebody ends it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from testbed.bugs.signature import Match
from testbed.errors import TestbedError, UsageError
from testbed.guest.guest import Guest
from testbed.host import registry
from testbed.host.paths import Folders
from testbed.host.registry import VmRecord
from testbed.vms import control, ssh_config
from testbed.vms.control import ControlServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """How to hold one: its `name`, the private `key` that its SSH server takes, and who is told `how` to enter it."""

    folders: Folders
    name: str
    file: str
    key: str
    paused: bool
    how: Callable[[str], None]

    async def hold(self, guest: Guest, match: Match) -> None:
        """Hold a guest until it is told to go, or is lost; one that has panicked or ended stands still, and its memory is there.

        :raise UsageError: the name is taken.
        """
        asked = asyncio.Event()
        ended = guest.loss is not None

        def ready() -> Guest:
            if guest.loss is not None and not ended:
                raise TestbedError(f"{self.name} is lost")
            return guest

        async def down(words: dict[str, Any]) -> dict[str, Any]:
            del words
            asked.set()
            return {}

        with registry.claim_name(self.folders, self.name) as folder:
            record = self._record(guest, match, ended)

            def note() -> None:
                still = bool(guest.hardware.errors.stopped) and not ended
                stands = replace(
                    record, why=f"{record.why}; it stands still", resume_with=f"testbed resume {self.name}"
                )
                registry.write_record(folder, stands if still else record)

            note()
            guest.hardware.errors.on_stop = note
            ssh_config.write_ssh_files(
                folder, self.name, self.key, guest.host_key.public, connect_s=guest.deadlines.command_s
            )
            verbs = {
                **ControlServer(self.name, ready).verbs,
                "down": down,
                **dict.fromkeys(("snapshot", "restore", "power-cut"), self._refuse),
            }
            async with (
                control.listen(
                    folder / "control", lambda reader, writer: control.answer_request(self.name, verbs, reader, writer)
                ),
                control.listen(
                    folder / "console", lambda reader, writer: control.stream_console(guest, reader, writer)
                ),
                control.serve_ssh_connections(folder, guest),
            ):
                self.how(self._words(ended))
                waits: list[asyncio.Task[Any]] = [asyncio.create_task(asked.wait())]
                waits += [] if ended else [asyncio.create_task(guest.lost())]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    guest.hardware.errors.on_stop = lambda: None  # there is no record any longer
                    for task in waits:
                        task.cancel()
                    await asyncio.gather(*waits, return_exceptions=True)

    async def _refuse(self, asked: dict[str, Any]) -> dict[str, Any]:
        raise UsageError(
            f"{self.name} is held by `testbed repro --hold`, in the middle of a try: it can be entered, debugged and dumped,"
            f" not asked for {asked['verb']}"
        )

    def _record(self, guest: Guest, match: Match, ended: bool) -> VmRecord:
        model, spec = guest.model, guest.spec
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
            why=f"held: {match.seen}" + ("; its memory is there for gdb and dumps" if ended else ""),
        )

    def _words(self, ended: bool) -> str:
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
