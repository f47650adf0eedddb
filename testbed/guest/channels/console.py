"""Reads a guest's serial console: logs it, finds the kernel's reports in it, and passes it on to listeners."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from testbed.guest.channels import dmesg, kernel_log
from testbed.guest.channels.dmesg import KernelLog
from testbed.host import failures
from testbed.host.logfile import OnFailure, write_error

MAX_LINE_BYTES = 16 << 10
_TAIL_LINES = 15
# A call trace comes in pieces, a few milliseconds apart.
_QUIET_S, _LAST_WORDS_S = 0.3, 2.0
# A guest that floods its console fills neither the disk nor our memory: the log has the beginning and the end of the
# output.
_MAX_LOG_BYTES = 32 << 20
_LAST_BYTES = 1 << 20
# Findings of each kind that are kept, so that a flood of I/O errors leaves room for a warning after it.
_MAX_FINDINGS = 500


async def open_channel(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the unix socket of one of a guest's serial ports."""
    return await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES)


class Console:
    """Reads everything that a guest prints, logs it, and reports at once a finding that the guest cannot survive.

    We write the log, not QEMU's `logfile=`, which repeats a character each time the socket was full (QEMU 7.2).
    `on_fatal` is called with a panic or an oops, `on_trouble` if the log cannot be written. `dmesg`, once it is set,
    completes `findings` in `close`.
    """

    def __init__(self, log: Path, on_fatal: Callable[[kernel_log.Finding], None], on_trouble: OnFailure) -> None:
        self._log = log
        self._on_fatal, self._on_trouble = on_fatal, on_trouble
        self._task: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._read_at = 0.0
        self._writer: asyncio.StreamWriter | None = None
        self._listeners: list[Callable[[bytes], None]] = []
        self._reader = kernel_log.ConsoleReader()
        self._found: Counter[kernel_log.Kind] = Counter()
        self.findings: list[kernel_log.Finding] = []
        self.dmesg: KernelLog | None = None
        self.printed_bytes = 0

    async def connect(self, path: Path) -> None:
        """Connect to the unix socket of the console, and read it from now on."""
        reader, self._writer = await open_channel(path)
        self._task = asyncio.create_task(self._watched(reader, self._writer), name=f"console {path}")

    @contextlib.contextmanager
    def listening(self, listener: Callable[[bytes], None]) -> Iterator[None]:
        """Pass everything that is printed to a listener, as it arrives."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def type(self, data: bytes) -> None:
        """Send input to the console, and wait until the socket has room for more."""
        if self._writer is not None:
            self._writer.write(data)
            await self._writer.drain()

    async def _watched(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the console; a failure ends the guest, since its panic would not be noticed any more."""
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
                    pending = pending[:MAX_LINE_BYTES]
                    for line in lines:
                        self._take(line)
            self._take(pending)
        finally:
            writer.close()

    def _finish(self, log: BinaryIO, last: bytearray) -> None:
        """Write the end of a flood below its beginning, and how much is left out in between."""
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
        """Classify one line of the output."""
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
        """Return the last lines."""
        return tuple(self._tail)

    async def wait_until_quiet(self) -> None:
        """Wait, after a panic or an oops, until its call trace has been printed: until nothing more comes, at most two
        seconds.
        """
        until = time.monotonic() + _LAST_WORDS_S
        while self._task is not None and not self._task.done() and any(finding.kind.fatal for finding in self.findings):
            quiet_at = self._read_at + _QUIET_S
            now = time.monotonic()
            if now >= min(quiet_at, until):
                return
            await asyncio.sleep(min(quiet_at, until) - now)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed and everything from it was read."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """Stop reading, and merge the kernel's own log into the findings."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.dmesg is not None:
            self.findings[:] = dmesg.merge(self.findings, self.dmesg, _MAX_FINDINGS)
