"""Serves the sockets of a VM's folder: control verbs, console and SSH, for its supervisor or for `repro --hold`."""

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
from testbed.host.control_client import DisksReply
from testbed.text import parse_json

# Commands connect only while they wait for a reply; other clients that stay connected must not use up our file
# descriptors.
_MOST_CONNECTIONS = 64
_LINE_S = 60.0

# A request and a reply are JSON objects; `testbed.host.control_client` is the other side.
Request = dict[str, Any]
Reply = Mapping[str, Any]
# Takes the arguments that its verb needs out of the request, and starts to handle it.
Verb = Callable[[Request], Awaitable[Reply]]


class ControlServer:
    """The verbs of a guest that is ready. `ready` returns the guest, or raises a TestbedError that says why there is
    none.

    `agent_lock`: held while something talks to the guest's agent. `exclusive`: held by a verb that stops the guest or
    replaces it.
    """

    def __init__(self, name: str, ready: Callable[[], Guest]) -> None:
        self._name, self._ready = name, ready
        self._sampler: DiskSampler | None = None
        self.agent_lock = asyncio.Lock()
        self.exclusive = asyncio.Lock()
        self.verbs: Mapping[str, Verb] = {
            "stats": lambda _: self._stats(),
            "shell": lambda request: self._shell(rows=int(request["rows"]), columns=int(request["columns"])),
            "disks": lambda _: self._disks(),
            "hardware": lambda request: self._hardware(request.get("words")),
            "resume": lambda _: self._resume(),
            "sample": lambda _: self._sample(),
            "qmp": lambda request: self._qmp(str(request["execute"]), dict(request["arguments"])),
            "gdb": lambda request: self._gdb(str(request.get("symbols") or "")),
            "dump": lambda request: self._dump(Path(request["path"]), request["format"]),
        }

    async def _stats(self) -> Reply:
        return await readings.read_all(self._ready())

    async def _disks(self) -> DisksReply:
        guest = self._ready()
        return {
            "disks": {name: asdict(disk) for name, disk in guest.disks.items()},
            "command_s": guest.deadlines.command_s,
        }

    async def _hardware(self, words: list[str] | None) -> Reply:
        """Run the hardware command `words`; without one, describe all disks and the machine."""
        guest = self._ready()
        if words is not None:
            action = commands.parse(words)
            return {action.disk: await hardware_control.run_action(guest, action)}
        disks = {name: await hardware_control.describe(guest.hardware, name) for name in guest.hardware.names()}
        return disks | {commands.MACHINE: await hardware_control.describe_machine(guest)}

    async def _resume(self) -> Reply:
        """Resume a guest that is stopped at a disk error; QEMU retries the request."""
        async with self.exclusive:
            guest = self._ready()
            if (
                not guest.hardware.errors.stopped
                and (await guest.monitor.execute("query-status"))["status"] != "paused"
            ):
                raise UsageError(f"{self._name} does not stand still")
            await guest.monitor.execute("cont")
        return {}

    async def _qmp(self, command: str, arguments: dict[str, Any]) -> Reply:
        guest = self._ready()
        running = guest.monitor.execute(command, arguments)
        return {"return": await guest.wait(running, guest.deadlines.monitor_s)}

    async def _sample(self) -> Reply:
        guest = self._ready()
        if self._sampler is None or not self._sampler.is_of(guest):
            self._sampler = await DiskSampler.start(guest)
        return await self._sampler.sample()

    async def _shell(self, *, rows: int, columns: int) -> Reply:
        """Start a shell on the serial console, for a terminal of this size."""
        guest = self._ready()
        async with self.agent_lock:
            size = {"rows": str(rows), "columns": str(columns)}
            await guest.wait(guest.agent.exchange("shell", "shell", **size), guest.deadlines.command_s)
        return {}

    async def _gdb(self, symbols: str) -> Reply:
        """Open the gdb server. `symbols`: path of the user's vmlinux or System.map; empty: the guest's own kallsyms."""
        return await gdb.open_gdb_server(self._ready(), Path(symbols) if symbols else None)

    async def _dump(self, path: Path, kind: vmcore.Format) -> Reply:
        """Write the guest's memory into the new file `path`."""
        async with self.exclusive:
            guest = self._ready()
            await vmcore.prepare_dump(guest)
            return {"bytes": await vmcore.write_dump(guest, path, kind)}


async def answer_request(
    name: str, verbs: Mapping[str, Verb], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Read one request from a connection of the control socket, and write its reply: that of its verb, or an error."""
    try:
        request = parse_json(await _read_line(reader))
        verb = verbs.get(request["verb"])
        reply = (
            await verb(request)
            if verb
            else {"error": f"{name}: it is kept in a way that does not know this; or by another version"}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reply = {"error": f"{name}: expected a verb and its arguments, got {error!r}"}
    except TestbedError as error:
        reply = {"error": str(error), "code": error.code}
    except OSError as error:
        reply = {"error": f"{name}: {error.filename or 'this machine'}: {error.strerror}", "code": HostError.code}
    except asyncio.CancelledError:  # by `listen`, which ends
        reply = {"error": f"{name} was ended by another command before this was done", "code": GuestError.code}
    except Exception as error:  # the guest goes on, and the client gets the error
        reply = {"error": f"{name}: {failures.one_line(error)}"}
    with contextlib.suppress(OSError):
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Return the line of a request; empty where it does not come in time.

    :raise ValueError: it is longer than `registry.LONGEST_LINE`.
    """
    try:
        async with asyncio.timeout(_LINE_S):
            return await reader.readline()
    except TimeoutError:
        return b""


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listen(path: Path, handle: Handler) -> AsyncIterator[None]:
    """Listen on a Unix socket that only this user can open, and handle each connection. At the end all connections are
    closed, whether their handlers are done or not."""
    handling: set[asyncio.Task[None]] = set()

    async def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(handling) >= _MOST_CONNECTIONS:
            writer.close()
            return
        handling.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # by us, below
                await handle(reader, writer)
        finally:
            handling.discard(task)
            writer.close()

    path.unlink(missing_ok=True)  # left by the previous guest, before a snapshot was restored
    server = await asyncio.start_unix_server(
        on_connect, sock=sockets.bind_socket(path, socket.SOCK_STREAM), limit=registry.LONGEST_LINE
    )
    try:
        yield
    finally:
        server.close()
        tasks = tuple(handling)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def stream_console(guest: Guest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Connect a client to the guest's serial console. A client that does not read loses what its socket cannot hold."""

    def show(data: bytes) -> None:
        if writer.transport.get_write_buffer_size() < registry.LONGEST_LINE:
            writer.write(data)

    with guest.console.listening(show), contextlib.suppress(OSError):
        while data := await reader.read(4096):
            await guest.console.type(data)


async def hand_over_connection(guest: Guest, writer: asyncio.StreamWriter) -> None:
    """Send a client the file descriptor of a new connection to the guest's SSH server, with the reason why that may be
    silent; or the reason why there is no connection."""
    try:
        with await guest.ssh_port.connect() as connection, writer.get_extra_info("socket").dup() as peer:
            socket.send_fds(peer, [guest.ssh_port.why_silent().encode() or b"\n"], [connection.fileno()])
    except TestbedError as error:
        writer.write(str(error).encode())
    except OSError as error:  # the client went away, or this process has too many open files
        writer.write(f"guest {guest.name}: SSH: {error}".encode())
    with contextlib.suppress(OSError):
        await writer.drain()


def serve_ssh_connections(folder: Path, guest: Guest) -> AbstractAsyncContextManager[None]:
    """Serve the socket by which every process that may enter the VM's folder gets connections to the guest's SSH
    server."""
    return listen(folder / registry.SSH, lambda _reader, writer: hand_over_connection(guest, writer))
