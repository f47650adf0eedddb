"""QEMU's monitor of one guest: commands, and the events that QEMU told of since the guest is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from testbed.api.event_loops import LoopRunner
from testbed.api.guest_backend import GuestBackend
from testbed.api.pausable_clock import PausableClock
from testbed.errors import GuestError
from testbed.text import parse_json

__tracebackhide__ = True  # pytest shows no frames of this module

_POLL_S = 0.02
_MONITOR_S = 60.0


class Events:
    """The events of some names, from one moment on."""

    def __init__(self, log: Path, names: tuple[str, ...], patience: PausableClock) -> None:
        self._log, self._names, self._patience = log, names, patience
        self._at = log.stat().st_size if log.exists() else 0
        self._found: list[dict[str, Any]] = []

    def seen(self) -> list[dict[str, Any]]:
        """Those that have come and were not taken by `next`, each as QEMU said it: `event`, `data`, `timestamp`."""
        self._found.extend(self._new())
        return list(self._found)

    async def next(self, timeout_s: float = 30) -> dict[str, Any]:
        """Take the next one, or wait for it.

        :raise GuestError: none comes.
        """

        async def one() -> dict[str, Any]:
            while not self.seen():
                await asyncio.sleep(_POLL_S)
            return self._found.pop(0)

        try:
            return await self._patience.within(one(), timeout_s)
        except TimeoutError:
            names = " or ".join(self._names) or "an event"
            raise GuestError(f"QMP: expected {names} within {timeout_s:g} s, got none; see {self._log}") from None

    def _new(self) -> Iterator[dict[str, Any]]:
        # The log of everything that is said is the one place where events are, whoever owns the guest.
        with self._log.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                event = parse_json(line).get("event")
                if event is not None and (not self._names or event["event"] in self._names):
                    yield event


class Qmp:
    """`await qmp.execute("query-status")`"""

    def __init__(self, machine: GuestBackend, carrier: LoopRunner, patience: PausableClock) -> None:
        self._machine, self._carrier, self._patience = machine, carrier, patience

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, **more: Any) -> Any:
        """Run a command and return its answer. Arguments whose names are no Python names go into `arguments`.

        :raise HostError: QEMU refuses it, or does not answer. :raise WireBroken: QEMU is gone.
        """
        return await self._carrier.do(self._machine.execute(command, {**(arguments or {}), **more}))

    @contextlib.asynccontextmanager
    async def events(self, *names: str) -> AsyncIterator[Events]:
        """The events of these names, or all, from now on.

        async with qmp.events("BLOCK_IO_ERROR") as errors:
            ...
            assert (await errors.next())["data"]["operation"] == "write"
        """
        yield Events(self._machine.evidence / "qmp.jsonl", names, self._patience)
