"""What is asked of a guest that stays, whoever keeps it: a supervisor, or a reproduction that holds the guest which has shown the bug."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testbed.errors import GuestError, HostError, TestbedError, UsageError
from testbed.guest import hardware_control
from testbed.guest.debug import gdb, vmcore
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings
from testbed.guest.metrics.disk_sampler import DiskSampler
from testbed.hardware import commands
from testbed.host import failures, registry, sockets
from testbed.text import parse_json

# Commands connect for as long as they ask; what else stays connected must not use up our open files.
_MOST_CONNECTIONS = 64
_LINE_S = 60.0

Verb = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlServer:
    """The verbs of a guest that is ready, which `ready` gives or refuses."""

    def __init__(self, name: str, ready: Callable[[], Guest]) -> None:
        self._name, self._ready = name, ready
        self._sampler: DiskSampler | None = None
        self.agent = asyncio.Lock()
        self.turn = asyncio.Lock()  # of those that stop it, or put another in its place
        self.verbs: Mapping[str, Verb] = {
            "stats": self._stats,
            "shell": self._shell,
            "disks": self._disks,
            "hardware": self._hardware,
            "resume": self._resume,
            "sample": self._sample,
            "qmp": self._qmp,
            "gdb": self._gdb,
            "dump": self._dump,
        }

    async def _stats(self, asked: dict[str, Any]) -> dict[str, Any]:
        del asked
        return await readings.read_all(self._ready())

    async def _disks(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Its disks and namespaces, by name, as the guest has them; and how long a command of it may take, in seconds."""
        del asked
        guest = self._ready()
        return {
            "disks": {name: asdict(disk) for name, disk in guest.disks.items()},
            "command_s": guest.deadlines.command_s,
        }

    async def _hardware(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Do what `words` say, or say how all disks behave, and the machine."""
        guest = self._ready()
        if "words" in asked:
            action = commands.parse(asked["words"])
            return {action.disk: await hardware_control.run_action(guest, action)}
        disks = {name: await hardware_control.describe(guest.hardware, name) for name in guest.hardware.names()}
        return disks | {commands.MACHINE: await hardware_control.describe_machine(guest)}

    async def _resume(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Let a guest go on that stands still at an error; the request is tried again."""
        del asked
        async with self.turn:
            guest = self._ready()
            if (
                not guest.hardware.errors.stopped
                and (await guest.monitor.execute("query-status"))["status"] != "paused"
            ):
                raise UsageError(f"{self._name} does not stand still")
            await guest.monitor.execute("cont")
        return {}

    async def _qmp(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A command of QMP."""
        guest = self._ready()
        running = guest.monitor.execute(str(asked["execute"]), dict(asked["arguments"]))
        return {"return": await guest.wait(running, guest.deadlines.monitor_s)}

    async def _sample(self, asked: dict[str, Any]) -> dict[str, Any]:
        del asked
        guest = self._ready()
        if self._sampler is None or not self._sampler.is_of(guest):
            self._sampler = await DiskSampler.start(guest)
        return await self._sampler.sample()

    async def _shell(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A shell on the serial console, of so many `rows` and `columns`."""
        guest = self._ready()
        async with self.agent:
            size = {"rows": str(int(asked["rows"])), "columns": str(int(asked["columns"]))}
            await guest.wait(guest.agent.exchange("shell", "shell", **size), guest.deadlines.command_s)
        return {}

    async def _gdb(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Let gdb in: its socket, and a file of the kernel's symbols; `symbols`: a vmlinux or System.map of the user's."""
        guest = self._ready()
        symbols = asked.get("symbols")
        return await gdb.open_gdb_server(guest, Path(symbols) if symbols else None)

    async def _dump(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Write its memory into the new file `path`."""
        async with self.turn:
            guest = self._ready()
            await vmcore.prepare_dump(guest)
            return {"bytes": await vmcore.write_dump(guest, Path(asked["path"]), asked["format"])}


async def answer_request(
    name: str, verbs: Mapping[str, Verb], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One line of a control socket."""
    try:
        asked = parse_json(await _line(reader))
        verb = verbs.get(asked["verb"])
        said = (
            await verb(asked)
            if verb
            else {"error": f"{name}: it is kept in a way that does not know this; or by another version"}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = {"error": f"{name}: expected a verb and its arguments, got {error!r}"}
    except TestbedError as error:
        said = {"error": str(error), "code": error.code}
    except OSError as error:
        said = {"error": f"{name}: {error.filename or 'this machine'}: {error.strerror}", "code": HostError.code}
    except asyncio.CancelledError:  # by `listening`, which ends
        said = {"error": f"{name} was ended by another command before this was done", "code": GuestError.code}
    except Exception as error:  # the guest goes on, and whoever asked is told
        said = {"error": f"{name}: {failures.one_line(error)}"}
    with contextlib.suppress(OSError):
        writer.write(json.dumps(said).encode() + b"\n")
        await writer.drain()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """What is asked; nothing where it does not come in time.

    :raise ValueError: it is longer than `vms.LONGEST_LINE`.
    """
    try:
        async with asyncio.timeout(_LINE_S):
            return await reader.readline()
    except TimeoutError:
        return b""


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listen(path: Path, handle: Handler) -> AsyncIterator[None]:
    """A socket, of this user alone, on which each connection is handled; all are closed at the end, whatever the others do."""
    handling: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(handling) >= _MOST_CONNECTIONS:
            writer.close()
            return
        handling.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # ours
                await handle(reader, writer)
        finally:
            handling.discard(task)
            writer.close()

    path.unlink(missing_ok=True)  # of the guest before, which went on from a snapshot
    server = await asyncio.start_unix_server(
        connected, sock=sockets.bind_socket(path, socket.SOCK_STREAM), limit=registry.LONGEST_LINE
    )
    try:
        yield
    finally:
        server.close()
        there = tuple(handling)
        for task in there:
            task.cancel()
        await asyncio.gather(*there, return_exceptions=True)


async def stream_console(guest: Guest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whoever is connected reads what the guest prints, and types; one that does not read loses what it could not take."""

    def show(data: bytes) -> None:
        if writer.transport.get_write_buffer_size() < registry.LONGEST_LINE:
            writer.write(data)

    with guest.console.listening(show), contextlib.suppress(OSError):
        while data := await reader.read(4096):
            await guest.console.type(data)


async def hand_over_connection(guest: Guest, writer: asyncio.StreamWriter) -> None:
    """Send a connection to the guest's SSH server, with what explains a server that does not answer; or why there is none."""
    try:
        with await guest.ssh_port.connect() as wire, writer.get_extra_info("socket").dup() as peer:
            socket.send_fds(peer, [guest.ssh_port.why_silent().encode() or b"\n"], [wire.fileno()])
    except TestbedError as error:
        writer.write(str(error).encode())
    except OSError as error:  # whoever asked went away, or this process has too many open files
        writer.write(f"guest {guest.name}: SSH: {error}".encode())
    with contextlib.suppress(OSError):
        await writer.drain()


def serve_ssh_connections(folder: Path, guest: Guest) -> AbstractAsyncContextManager[None]:
    """Let who may enter a guest's folder connect to its SSH server."""
    return listen(folder / registry.SSH, lambda _reader, writer: hand_over_connection(guest, writer))
