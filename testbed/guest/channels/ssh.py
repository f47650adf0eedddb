"""Runs commands in a guest over SSH, with bounded output, and translates asyncssh's errors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import asyncssh

from testbed.errors import CommandFailed, GuestError, HostError, WireBroken
from testbed.guest.channels import ssh_connection
from testbed.guest.channels.ssh_endpoint import Credentials, Endpoint
from testbed.host.logfile import Log

# dropbear ends the connection at a command of 9000 bytes (MAX_CMD_LEN); a longer one is read by a shell of its own.
_LONGEST_COMMAND = 8000
# Called with what a command prints, as it arrives.
Listener = Callable[[bytes], None]
# The limit of what is kept of a command's output: the guest chooses how much it prints.
_MAX_OUTPUT_BYTES = 8 << 20
# The limit of a file that is copied out of a guest.
_MAX_FILE_BYTES = 16 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command in the guest ended; `signal` names the signal that killed it, or is empty.

    `stdout` and `stderr` are text, in which U+FFFD replaces invalid UTF-8; `stdout_bytes` and `stderr_bytes` are
    unchanged. `truncated`: one of them was longer than 8 MiB, and the rest was dropped.
    """

    status: int
    signal: str
    stdout_bytes: bytes
    stderr_bytes: bytes
    truncated: bool
    took_s: float

    @property
    def stdout(self) -> str:
        """The standard output as text."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """The standard error as text."""
        return self.stderr_bytes.decode(errors="replace")

    def last_output(self, most: int = 2000) -> str:
        """Return the end of the standard error, or of the output if there was none, for a message; it says how much is
        left out.
        """
        text = self.stderr or self.stdout
        before = f"[{len(text) - most} characters before] " if len(text) > most else ""
        after = f" [cut off at {_MAX_OUTPUT_BYTES >> 20} MiB]" if self.truncated else ""
        return f"{before}{text[-most:].rstrip()}{after}"


class Shell:
    """SSH connections as root to one guest; each runs one command at a time.

    When a command of several on one connection ends while another begins, dropbear (2022.83) now and then closes the
    channel of the new one, whose command may have run nevertheless: seen in 4 of 60 commands, four at once.
    """

    def __init__(
        self,
        guest: str,
        connection: asyncssh.SSHClientConnection,
        open_another: Callable[[], Awaitable[asyncssh.SSHClientConnection]],
        command_s: float,
        log: Log | None,
        environment: Mapping[str, str],
    ) -> None:
        self._guest = guest
        self._exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in environment.items())
        self._open_another = open_another
        self._free, self._all = [connection], [connection]
        self._command_s = command_s
        self._log = log

    @classmethod
    async def connect(
        cls,
        guest: str,
        wire: socket.socket,
        *,
        credentials: Credentials,
        endpoint: Endpoint,
        command_s: float,
        log: Log | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Shell:
        """Log in over a connected socket; the caller owns the deadline. `endpoint`: where further connections are made.

        :raise GuestError: the server has another host key. :raise HostError: other users of this machine keep the
        server busy.
        :raise WireBroken: the server refuses the login, or does not speak SSH.
        """

        async def open_on(wire: socket.socket) -> asyncssh.SSHClientConnection:
            try:
                return await ssh_connection.open_connection(guest, wire, credentials)
            except WireBroken as error:
                if reason := endpoint.why_silent():
                    raise HostError(f"{error}{reason}") from error
                raise

        async def open_another() -> asyncssh.SSHClientConnection:
            wire = await endpoint.connect()
            try:
                return await open_on(wire)
            except BaseException:
                wire.close()
                raise

        return cls(guest, await open_on(wire), open_another, command_s, log, environment)

    async def run(self, command: Sequence[str], *, check: bool = True, timeout_s: float | None = None) -> Result:
        """Run one program; `command` is its argv, each word quoted for the guest's shell.

        :raise CommandFailed: it did not end in time; or its status is not 0, and `check` is set.
        :raise WireBroken: the connection broke.
        """
        return await self._run(shlex.join(command), b"", check, timeout_s)

    async def script(
        self,
        text: str,
        *arguments: str,
        check: bool = True,
        timeout_s: float | None = None,
        interpreter: str = "sh",
        listeners: tuple[Listener, Listener] | None = None,
        stdin: bytes = b"",
    ) -> Result:
        """Run a script with `arguments` as $1, $2, ... For `sh` the login shell itself runs it, which saves an exec.

        `listeners`: called with its standard output and its standard error as they arrive. `stdin`: its standard input.
        """
        if interpreter == "sh":
            # On the script's first line, so that the shell's messages have the script's line numbers.
            text = f"{shlex.join(['set', '--', *arguments])}; {text}"
            return await self._run(text, stdin, check, timeout_s, listeners)
        return await self._run(
            shlex.join([interpreter, "-c", text, interpreter, *arguments]), stdin, check, timeout_s, listeners
        )

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """Reserve a connection. An exception closes it, since the command that it runs may still be running."""
        while self._free and self._free[-1].is_closed():
            self._all.remove(self._free.pop())
        if not self._free:
            self._all.append(await self._open_another())
            self._free.append(self._all[-1])
        connection = self._free.pop()
        try:
            yield connection
        except asyncssh.SFTPError:
            self._free.append(connection)
            raise
        except BaseException:
            connection.abort()
            self._all.remove(connection)
            raise
        self._free.append(connection)

    async def _run(
        self,
        command: str,
        stdin: bytes,
        check: bool,
        timeout_s: float | None,
        listeners: tuple[Listener, Listener] | None = None,
    ) -> Result:
        started = time.monotonic()
        limit = self._command_s if timeout_s is None else timeout_s
        shown = _shown(command)
        command = self._exports + command
        if len(script := command.encode()) > _LONGEST_COMMAND:
            # The same shell reads the script from its input, and no byte more, which is for the script.
            command, stdin = f'eval "$(head -c {len(script)})"', script + stdin
        try:
            async with asyncio.timeout(limit), self._connection() as connection:
                child = await connection.create_process(command, encoding=None)
                try:
                    with contextlib.suppress(BrokenPipeError):  # a command that reads no input may have ended
                        child.stdin.write(stdin)
                        child.stdin.write_eof()
                    (stdout, more_output), (stderr, more_errors) = await asyncio.gather(
                        _bounded(child.stdout, listeners and listeners[0]),
                        _bounded(child.stderr, listeners and listeners[1]),
                    )
                    await child.wait_closed()
                finally:
                    # Do not wait: the server closes the channel when the command ends, and we may be here because it
                    # does not end.
                    child.close()
        except TimeoutError:
            raise CommandFailed(self._guest, shown, f"none within {limit:.0f} s", "") from None
        except (asyncssh.Error, OSError) as error:
            raise WireBroken(f"guest {self._guest}: `{shown}`: the SSH connection broke: {error}") from error
        signal = child.exit_signal[0] if child.exit_signal else ""
        status = child.exit_status if child.exit_status is not None else -1
        result = Result(
            status=status,
            signal=signal,
            stdout_bytes=stdout,
            stderr_bytes=stderr,
            truncated=more_output or more_errors,
            took_s=time.monotonic() - started,
        )
        self._record(shown, result)
        if check and status != 0:
            raise CommandFailed(self._guest, shown, f"{status} {signal}".strip(), result.last_output())
        return result

    async def put(self, source: Path, target: str) -> None:
        """Copy a file of this machine into the guest, with its holes; the caller owns the deadline.

        :raise GuestError: the guest cannot write it. :raise HostError: the file cannot be read, or was changed during
        the copy.
        :raise WireBroken: the connection broke.
        """
        async with self._transfer(f"{source} to {target}") as sftp:
            before = source.stat()
            has_holes = before.st_blocks * 512 < before.st_size
            await sftp.put(str(source), target, follow_symlinks=True, sparse=has_holes)
            if has_holes:
                # The copy ends at the last data; add the hole at the end.
                await sftp.truncate(target, before.st_size)
            after = source.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise HostError(
                f"copying {source} to {target}: expected a file that stays as it is, it was written to meanwhile"
            )

    async def get(self, source: str, target: Path, *, most_bytes: int | None = None) -> None:
        """Copy a file of the guest to this machine, at most `most_bytes` (default 16 GiB); the caller owns the
        deadline.

        Raises as `put`.
        """
        async with self._transfer(f"{source} out of it") as sftp:
            # A sparse copy does not notice that it is shorter than the file (asyncssh 2.24).
            bounded = _at_most(self._guest, most_bytes or _MAX_FILE_BYTES)
            await sftp.get(source, str(target), follow_symlinks=True, sparse=False, progress_handler=bounded)

    @contextlib.asynccontextmanager
    async def _transfer(self, what: str) -> AsyncIterator[asyncssh.SFTPClient]:
        try:
            async with self._connection() as connection, connection.start_sftp_client() as sftp:
                yield sftp
        except asyncssh.SFTPError as error:
            raise GuestError(f"guest {self._guest}: copying {what}: {error.reason}") from error
        except (asyncssh.Error, ConnectionError) as error:
            raise WireBroken(f"guest {self._guest}: copying {what}: the SSH connection broke: {error}") from error
        except OSError as error:
            raise HostError(f"copying {what}: {os.fsdecode(error.filename or 'a file')}: {error.strerror}") from error

    def _record(self, command: str, result: Result) -> None:
        if self._log is not None:
            cut = f", cut off at {_MAX_OUTPUT_BYTES >> 20} MiB" if result.truncated else ""
            self._log.add(
                f"$ {command}\n{result.stdout}{result.stderr}[status {result.status}, {result.took_s:.3f} s{cut}]\n"
            )

    async def close(self) -> None:
        """Abort the connections; waits at most 1 s for the server."""
        for connection in self._all:
            connection.abort()
        with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
            async with asyncio.timeout(1):
                await asyncio.gather(*(connection.wait_closed() for connection in self._all))


def _at_most(guest: str, most_bytes: int) -> Callable[[bytes, bytes, int, int], None]:
    """Return a progress handler that ends a copy that is too large."""

    def check(source: bytes, target: bytes, copied_bytes: int, total_bytes: int) -> None:
        if max(copied_bytes, total_bytes) > most_bytes:
            name = source.decode(errors="replace")
            raise GuestError(f"guest {guest}: {name}: expected a file of at most {most_bytes} bytes, got more")

    return check


def _shown(command: str) -> str:
    """Return a command as it is shown in messages: a script by its first lines."""
    first, *more = command.strip().splitlines()
    return f"{first}; {more[0][:60]} ..." if more else first


async def _bounded(stream: asyncssh.SSHReader[bytes], listeners: Listener | None = None) -> tuple[bytes, bool]:
    """Read a stream to its end; returns its bytes up to the limit, and whether there were more, which are dropped."""
    kept: list[bytes] = []
    size_bytes = 0
    while data := await stream.read(65536):
        if listeners is not None:
            listeners(data)
            # Buffered data is read without waiting: let other tasks run.
            await asyncio.sleep(0)
        if size_bytes < _MAX_OUTPUT_BYTES:
            kept.append(data[: _MAX_OUTPUT_BYTES - size_bytes])
        size_bytes += len(data)
    return b"".join(kept), size_bytes > _MAX_OUTPUT_BYTES
