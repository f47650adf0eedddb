"""Talks QMP with one QEMU: one client per guest; each message is logged, and errors become ours."""

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
from testbed.qemu.qmp_command import QmpCommand
from testbed.text import parse_json_object

_COMMAND_S = 60.0
_SHOWN_BYTES = 200


class _Client(QMPClient):
    """The QMP client without the library's log, and with our JSON reader.

    The library formats each message as indented text before it checks whether a log handler exists, which took most of
    a command's time. And its reader raises RecursionError for deeply nested JSON, which a guest that has taken QEMU
    over may send.
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
    """The control connection to one QEMU. `on_event`: called with each event's name and data; `visible`: translates
    paths (`Jail.visible`).
    """

    def __init__(
        self,
        name: str,
        log: Log,
        on_event: Callable[[str, dict[str, Any]], None],
        visible: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self._name = name
        self._log = log
        self._on_event = on_event
        self._visible = visible
        self._client = _Client(name)
        self._sending = asyncio.Lock()
        self._client.logger.disabled = True  # failures reach the caller as exceptions, and messages our own log
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
                # Not listening yet. The caller notices if QEMU has ended.
                await asyncio.sleep(0.01)
        self._events = asyncio.create_task(self._read_events(), name=f"qmp events of {self._name}")

    async def _read_events(self) -> None:
        async for message in self._listener:
            record: dict[str, Any] = dict(message)
            self._record({"event": record})
            self._on_event(str(record.get("event")), dict(record.get("data") or {}))

    async def closed(self) -> None:
        """Wait until QEMU closes the connection. Raises what went wrong in an event's handler: no later event is
        handled then.
        """
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

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, log: bool = True) -> Any:
        """Run one command and return its answer. `log`: False for commands that are repeated often; only their failures
        are logged.

        :raise HostError: QEMU refuses the command, or does not answer.
        :raise WireBroken: QEMU is gone.
        """
        started = time.monotonic()
        record: dict[str, Any] = {"execute": command, "arguments": arguments or {}}
        try:
            async with asyncio.timeout(_COMMAND_S):
                answer = await self._client.execute(command, self._visible(arguments))
            record["return"] = answer
            if not log:
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

    async def run_pipelined(self, commands: tuple[QmpCommand, ...]) -> None:
        """Send all commands in their order without waiting for answers in between; QEMU runs each, also after one that
        it refused.

        :raise HostError: QEMU refused a command; has its answer to the first of these.
        """
        answers = await asyncio.gather(
            *(self.execute(one.execute, one.arguments) for one in commands), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def throttle_limits(self, group: str) -> dict[str, int]:
        """Return the current limits of a throttle group by QEMU's names, including those that are not set."""
        limits: dict[str, int] = await self.execute(
            "qom-get", {"path": f"/objects/{group}", "property": "limits"}, log=False
        )
        return limits

    async def forwarded_port(self) -> int:
        """Return the port of this machine that QEMU forwards to the guest's port 22.

        QEMU chose a free port, and only its human monitor tells which.
        """
        table = str(await self.execute("human-monitor-command", {"command-line": "info usernet"}))
        for line in table.splitlines():
            words = line.split()
            if words and words[0] == "TCP[HOST_FORWARD]":
                return int(words[3])
        raise HostError(f"QEMU: expected a forwarded port in `info usernet`, got: {table.strip()}")

    async def send_file(self, name: str, descriptor: int) -> None:
        """Pass an open file to QEMU under a name: QEMU's sandbox lets it open nothing that needs a child process."""
        async with self._sending:  # QEMU holds one unnamed descriptor until `getfd` names it
            self._client.send_fd_scm(descriptor)
            await self.execute("getfd", {"fdname": name})

    def _record(self, record: dict[str, Any]) -> None:
        self._log.note({"monotonic_s": round(time.monotonic(), 6), **record})

    async def close(self) -> None:
        """Close the connection, whatever its state."""
        if self._events is not None:
            self._events.cancel()
        # disconnect() raises what its reader saw: EOFError if QEMU closed the connection first, ValueError for a
        # message that was too long. Its task group must be awaited in these cases too.
        with contextlib.suppress(QMPError, EOFError, OSError, ValueError):
            await self._client.disconnect()
        if self._events is not None:
            await asyncio.gather(self._events, return_exceptions=True)
