"""QEMU's monitor: one QMP client per guest, every message kept in a file, its errors turned into ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError, Runstate
from qemu.qmp.message import DeserializationError

from testbed.errors import HostError, WireBroken
from testbed.host.logfile import Log
from testbed.qemu.qmp import QmpCommand
from testbed.text import parse_json_object

_COMMAND_S = 60.0
_SHOWN_BYTES = 200


class _Client(QMPClient):
    """Logs no messages: the library writes each out as indented text before it asks whether anybody wants it, which took most of a
    command's time. Reads them as all JSON is read here: a guest may have taken QEMU over, and the library's own reader raises
    RecursionError.
    """

    async def _do_recv(self) -> Message:
        line = await self._readline()
        try:
            return Message(parse_json_object(line), eager=False)
        except ValueError as error:
            raise DeserializationError(str(error), line[:_SHOWN_BYTES]) from error

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """The control connection to one QEMU. `on_event` hears every event's name and data; `seen` names paths as QEMU reaches them."""

    def __init__(
        self,
        name: str,
        log: Log,
        on_event: Callable[[str, dict[str, Any]], None],
        seen: Callable[[Any], Any] = lambda said: said,
    ) -> None:
        self._name = name
        self._log = log
        self._on_event = on_event
        self._seen = seen
        self._client = _Client(name)
        self._sending = asyncio.Lock()
        self._client.logger.disabled = True  # what it would log reaches the caller as an exception, or the file below
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        self._events: asyncio.Task[None] | None = None

    async def connect(self, socket: Path) -> None:
        """Connect as soon as QEMU listens; waits until then (the caller owns the deadline)."""
        while True:
            try:
                await self._client.connect(str(socket))
                break
            except QMPError:
                # Not listening yet. A QEMU that ended is noticed by whoever waits for us.
                await asyncio.sleep(0.01)
        self._events = asyncio.create_task(self._hear(), name=f"qmp events of {self._name}")

    async def _hear(self) -> None:
        async for message in self._listener:
            record: dict[str, Any] = dict(message)
            self._record({"event": record})
            self._on_event(str(record.get("event")), dict(record.get("data") or {}))

    async def closed(self) -> None:
        """Wait until the connection is gone from QEMU's side. Raises what went wrong where an event was heard: no other is heard then."""
        assert self._events is not None
        while self._client.runstate is Runstate.RUNNING:
            changed = asyncio.ensure_future(self._client.runstate_changed())
            try:
                await asyncio.wait((changed, self._events), return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if self._events.done() and not self._events.cancelled():
                self._events.result()
                return

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, kept: bool = True) -> Any:
        """Run one command and return its answer; only what goes wrong is logged where it is not `kept`, being asked again and again.

        :raise HostError: QEMU refuses it, or does not answer.
        :raise WireBroken: QEMU is gone.
        """
        started = time.monotonic()
        record: dict[str, Any] = {"execute": command, "arguments": arguments or {}}
        try:
            async with asyncio.timeout(_COMMAND_S):
                answer = await self._client.execute(command, self._seen(arguments))
            record["return"] = answer
            if not kept:
                record = {}
            return answer
        except ExecuteError as error:
            record["error"] = str(error)
            raise HostError(
                f"guest {self._name}: QEMU refused {command} {json.dumps(arguments or {})}: {error}"
            ) from error
        except TimeoutError:
            record["error"] = "no answer"
            raise HostError(
                f"guest {self._name}: QEMU: expected an answer to {command} within {_COMMAND_S:.0f} s, got none"
            ) from None
        except (ExecInterruptedError, QMPError) as error:
            record["error"] = repr(error)
            raise WireBroken(f"guest {self._name}: QEMU's monitor went away during {command}") from error
        finally:
            if record:
                self._record(record | {"took_s": round(time.monotonic() - started, 6)})

    async def run(self, commands: tuple[QmpCommand, ...]) -> None:
        """Run commands in their order; stops at the first that is refused."""
        for command in commands:
            await self.execute(command.execute, command.arguments)

    async def run_at_once(self, commands: tuple[QmpCommand, ...]) -> None:
        """Send all commands, in their order, without waiting for the answers in between; QEMU runs each, also after one that it refused.

        :raise HostError: what QEMU said to the first that it refused.
        """
        answers = await asyncio.gather(
            *(self.execute(one.execute, one.arguments) for one in commands), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def limits(self, group: str) -> dict[str, int]:
        """The limits that a throttle group has now, by their names in QEMU, each of them."""
        found: dict[str, int] = await self.execute(
            "qom-get", {"path": f"/objects/{group}", "property": "limits"}, kept=False
        )
        return found

    async def forwarded_port(self) -> int:
        """The port of this machine that QEMU forwards to the guest's 22: QEMU chose a free one, and only its human monitor says which."""
        table = str(await self.execute("human-monitor-command", {"command-line": "info usernet"}))
        for line in table.splitlines():
            words = line.split()
            if words and words[0] == "TCP[HOST_FORWARD]":
                return int(words[3])
        raise HostError(f"QEMU: expected a forwarded port in `info usernet`, got: {table.strip()}")

    async def send_file(self, name: str, descriptor: int) -> None:
        """Hand an open file to QEMU under a name: its sandbox opens nothing by itself that needs a child."""
        async with self._sending:  # QEMU keeps one file until it is told the name
            self._client.send_fd_scm(descriptor)
            await self.execute("getfd", {"fdname": name})

    def _record(self, record: dict[str, Any]) -> None:
        self._log.note({"monotonic_s": round(time.monotonic(), 6), **record})

    async def close(self) -> None:
        """End the connection, whatever state it is in."""
        if self._events is not None:
            self._events.cancel()
        # disconnect() raises what its reader saw: EOFError of a peer that ended first, ValueError of a message that was too long. Its task
        # group must be awaited all the same.
        with contextlib.suppress(QMPError, EOFError, OSError, ValueError):
            await self._client.disconnect()
        if self._events is not None:
            await asyncio.gather(self._events, return_exceptions=True)
