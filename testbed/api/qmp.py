"""QMP of one guest: commands, and the events that QEMU has emitted."""

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
    """The events with some names, from one moment on."""

    def __init__(self, log: Path, names: tuple[str, ...], clock: PausableClock) -> None:
        self._log, self._names, self._clock = log, names, clock
        self._at = log.stat().st_size if log.exists() else 0
        self._found: list[dict[str, Any]] = []

    def seen(self) -> list[dict[str, Any]]:
        """Return the events that `next` has not returned yet, each as QEMU sent it: `event`, `data`, `timestamp`."""
        self._found.extend(self._new())
        return list(self._found)

    async def next(self, timeout_s: float = 30) -> dict[str, Any]:
        """Return the next event; wait for it if there is none yet.

        :raise GuestError: none arrives in time.
        """

        async def one() -> dict[str, Any]:
            while not self.seen():
                await asyncio.sleep(_POLL_S)
            return self._found.pop(0)

        try:
            return await self._clock.within(one(), timeout_s)
        except TimeoutError:
            names = " or ".join(self._names) or "an event"
            raise GuestError(f"QMP: expected {names} within {timeout_s:g} s, got none; see {self._log}") from None

    def _new(self) -> Iterator[dict[str, Any]]:
        # The QMP log has the events of every guest, also of those that a supervisor owns.
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

    def __init__(self, backend: GuestBackend, runner: LoopRunner, clock: PausableClock) -> None:
        self._backend, self._runner, self._clock = backend, runner, clock

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, **more: Any) -> Any:
        """Execute a command and return its result. Arguments whose names are no Python identifiers go into `arguments`.

        :raise HostError: QEMU refuses it, or does not answer. :raise WireBroken: QEMU has ended.
        """
        return await self._runner.do(self._backend.execute(command, {**(arguments or {}), **more}))

    @contextlib.asynccontextmanager
    async def events(self, *names: str) -> AsyncIterator[Events]:
        """Collect the events with these names, or all events, from now on.

        async with qmp.events("BLOCK_IO_ERROR") as errors:
            ...
            assert (await errors.next())["data"]["operation"] == "write"
        """
        yield Events(self._backend.logs / "qmp.jsonl", names, self._clock)
