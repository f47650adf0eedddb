"""A guest's wires: the console, which is watched, the agent's port, which is spoken on, and the connection that SSH will be spoken on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from testbed.errors import GuestError, WireBroken
from testbed.guest.channels import dmesg, kernel_log
from testbed.guest.channels.dmesg import KernelLog
from testbed.host import failures, other_users
from testbed.host.logfile import OnFailure, write_error
from testbed.qemu.netns import NetworkNamespace

_MAX_LINE_BYTES = 16 << 10
# An answer of the agent: a table of all cgroups of a guest fits.
_MAX_ANSWER_BYTES = 8 << 20
_TAIL_LINES = 15
# A call trace comes in pieces, a few milliseconds apart.
_QUIET_S, _LAST_WORDS_S = 0.3, 2.0
# A guest that floods its console fills neither the disk nor our memory: the log has its first words, and its last ones.
_MAX_LOG_BYTES = 32 << 20
_LAST_BYTES = 1 << 20
# Of each kind, so that a flood of I/O errors leaves room for the warning behind it.
_MAX_FINDINGS = 500


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path, limit=_MAX_LINE_BYTES)


class Console:
    """Reads everything that a guest prints, keeps it in a file, and says at once when the guest cannot go on.

    The file is ours and not QEMU's `logfile=`: that one gets a character again for each time the socket was full (QEMU 7.2).
    """

    def __init__(self, log: Path, on_fatal: Callable[[kernel_log.Finding], None], on_trouble: OnFailure) -> None:
        self._log = log
        self._on_fatal, self._on_trouble = on_fatal, on_trouble
        self._task: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._read_at = 0.0
        self._writer: asyncio.StreamWriter | None = None
        self._listeners: list[Callable[[bytes], None]] = []
        self._reader = kernel_log.Reader()
        self._found: Counter[kernel_log.Kind] = Counter()
        self.findings: list[kernel_log.Finding] = []
        self.dmesg: KernelLog | None = None  # completes `findings` at the end
        self.printed_bytes = 0

    async def connect(self, path: Path) -> None:
        reader, self._writer = await _connect(path)
        self._task = asyncio.create_task(self._watched(reader, self._writer), name=f"console {path}")

    @contextlib.contextmanager
    def heard_by(self, listener: Callable[[bytes], None]) -> Iterator[None]:
        """Lets a listener have everything that is printed, as it comes."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def type(self, data: bytes) -> None:
        """Send what a keyboard would, and wait until the guest has room for more."""
        if self._writer is not None:
            self._writer.write(data)
            await self._writer.drain()

    async def _watched(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Where it fails, nobody looks at what the guest prints any longer, and it may print that it has died."""
        try:
            await self._watch(reader, writer)
        except Exception as error:
            self._on_trouble(f"its console is no longer read: {failures.describe(error, self._log.parent)}")

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = b""
        last = bytearray()
        try:
            with contextlib.ExitStack() as stack:
                log = stack.enter_context(self._log.open("wb", buffering=0))
                stack.callback(self._finish, log, last)
                stack.enter_context(contextlib.suppress(OSError))
                while data := await reader.read(65536):
                    self._read_at = time.monotonic()
                    for listener in tuple(self._listeners):
                        listener(data)
                    room = max(0, _MAX_LOG_BYTES - self.printed_bytes)
                    try:
                        log.write(data[:room])
                    except OSError as error:
                        self._on_trouble(write_error(self._log, error))
                    self.printed_bytes += len(data)
                    if room < len(data):
                        last += data[room:]
                        if len(last) > 2 * _LAST_BYTES:
                            del last[:-_LAST_BYTES]
                    *lines, pending = (pending + data).split(b"\n")
                    pending = pending[:_MAX_LINE_BYTES]
                    for line in lines:
                        self._take(line)
            self._take(pending)
        finally:
            writer.close()

    def _finish(self, log: BinaryIO, last: bytearray) -> None:
        """What was printed last goes below what was first, and a note of what is missing between."""
        tail = bytes(last[-_LAST_BYTES:])
        cut = self.printed_bytes - _MAX_LOG_BYTES - len(tail)
        if tail:
            note = (
                f"\n[testbed: {cut} of {self.printed_bytes} bytes that the guest printed are left out here]\n"
                if cut
                else ""
            )
            with contextlib.suppress(OSError):
                log.write(note.encode() + tail)

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace")
        if line.strip():
            self._tail.append(kernel_log.clean(line.rstrip()))
        finding = self._reader.take(line)
        if finding is None:
            return
        self._found[finding.kind] += 1
        if self._found[finding.kind] <= _MAX_FINDINGS:
            self.findings.append(finding)
        if finding.kind.fatal:
            self._on_fatal(finding)

    def tail(self) -> tuple[str, ...]:
        """The last lines."""
        return tuple(self._tail)

    async def last_words(self) -> None:
        """After a panic or an oops: wait until the guest has nothing more to say about it. For two seconds at most."""
        until = time.monotonic() + _LAST_WORDS_S
        while self._task is not None and not self._task.done() and any(finding.kind.fatal for finding in self.findings):
            quiet_at = self._read_at + _QUIET_S
            now = time.monotonic()
            if now >= min(quiet_at, until):
                return
            await asyncio.sleep(min(quiet_at, until) - now)

    async def ended(self) -> None:
        """Wait until the wire is closed and everything on it was read."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.dmesg is not None:
            self.findings[:] = dmesg.merge(self.findings, self.dmesg, _MAX_FINDINGS)


class Agent:
    """Speaks lines with process 1 of the guest (images/guest/testbed-agent)."""

    def __init__(self, guest: str) -> None:
        self._guest = guest
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._turn = asyncio.Lock()
        self._turns = itertools.count()

    async def connect(self, path: Path) -> None:
        self._reader, self._writer = await _connect(path)

    async def ask(self, verb: str, **words: str) -> tuple[tuple[str, ...], str]:
        """Ask something that is answered in several lines, the last of which begins with `verb`: those before it, and what that one says.

        One at a time; an answer to somebody who has stopped waiting is not taken for one to the next.

        :raise GuestError: the agent says that it failed, or more than anybody asked for. :raise WireBroken: the wire is closed.
        """
        async with self._turn:
            mark = f"turn={next(self._turns)}"
            self.say(f"{verb} {mark}", **words)
            lines: list[str] = []
            room_bytes = _MAX_ANSWER_BYTES
            while True:
                said, _, rest = (line := await self._line(verb)).partition(" ")
                if said != verb:
                    lines.append(line)
                    room_bytes -= len(line) + 1
                    if room_bytes < 0:
                        most = f"at most {_MAX_ANSWER_BYTES} bytes"
                        raise GuestError(f"guest {self._guest}: agent: expected {most} before `{verb}`, got more")
                elif rest.split(" ", 1)[0] == mark:
                    return tuple(lines), rest
                else:
                    lines.clear()

    async def exchange(self, verb: str, answer: str, **words: str) -> str:
        """Say one line and wait for the one that answers it; see `expect`."""
        async with self._turn:
            self.say(verb, **words)
            return await self.expect(answer)

    async def expect(self, word: str) -> str:
        """Wait for a line that begins with `word`, and return the rest of it.

        :raise GuestError: the agent says that it failed. :raise WireBroken: the wire is closed.
        """
        while True:
            verb, _, rest = (await self._line(word)).partition(" ")
            if verb == word:
                return rest

    async def _line(self, word: str) -> str:
        """The next line, on the way to one that begins with `word`."""
        assert self._reader is not None
        try:
            line = (await self._reader.readline()).decode(errors="replace")
        except (ValueError, OSError) as error:
            raise WireBroken(f"guest {self._guest}: agent: expected a line `{word}`, got {error}") from error
        if not line:
            raise WireBroken(f"guest {self._guest}: agent: expected a line `{word}`, got the end of the wire")
        said = kernel_log.clean(line.rstrip(), _MAX_LINE_BYTES)
        if said.startswith("failed "):
            raise GuestError(
                f"guest {self._guest}: agent: expected `{word}`, got a failure: {said.removeprefix('failed ')}"
            )
        return said

    def say(self, verb: str, **words: str) -> None:
        """Send one line; values must not hold spaces."""
        assert self._writer is not None
        self._writer.write((" ".join([verb, *(f"{name}={value}" for name, value in words.items())]) + "\n").encode())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def bind_socket(path: Path, kind: socket.SocketKind) -> socket.socket:
    """A unix socket at a path, of this user alone."""
    own = socket.socket(socket.AF_UNIX, kind)
    try:
        os.fchmod(own.fileno(), 0o600)  # what bind makes has the mode of its socket
        own.bind(str(path))
    except OSError:
        own.close()
        raise
    return own


class Entrance:
    """The port that QEMU forwards to a guest's SSH server, on 127.0.0.1 of `netns`; None: of this machine's own network, where every user
    reaches it. QEMU chooses the `port`.
    """

    def __init__(self, guest: str, netns: NetworkNamespace | None) -> None:
        self._guest, self._netns = guest, netns
        self.port = 0

    async def dial(self) -> socket.socket:
        """A connection to it.

        :raise WireBroken: nobody listens.
        """
        if self._netns is None:
            return await connect_to_guest(self._guest, self.port)
        return await connect_to_guest(self._guest, self.port, self._netns.socket)

    def why_silent(self) -> str:
        """Who else is connected, where anybody may be: what explains a server that does not answer."""
        return other_users.find_connections(self.port) if self._netns is None and self.port else ""


async def connect_to_guest(guest: str, port: int, made: Callable[[], socket.socket] = socket.socket) -> socket.socket:
    """A connection to a port of 127.0.0.1 that QEMU forwards to the guest, in the network of which a socket is `made`.

    :raise WireBroken: nobody listens.
    """
    try:
        wire = made()
    except OSError as error:
        raise WireBroken(f"guest {guest}: SSH: a socket in its QEMU's network: {error}") from error
    try:
        wire.setblocking(False)
        await asyncio.get_running_loop().sock_connect(wire, ("127.0.0.1", port))
    except BaseException as error:
        wire.close()  # also of a caller who does not wait any longer
        if isinstance(error, OSError):
            raise WireBroken(f"guest {guest}: SSH on port {port}: {error}") from error
        raise
    return wire
