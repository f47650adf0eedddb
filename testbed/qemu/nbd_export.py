"""Starts and controls the processes that export a disk to QEMU (`testbed.qemu.nbd_server`).

There is one for each disk that has delays, losses or a volatile cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.hardware.faults import Fault
from testbed.hardware.latency import Latency
from testbed.host import process
from testbed.host.facts import Host
from testbed.qemu import blockdev, jail
from testbed.qemu.blockdev import Storage
from testbed.qemu.nbd_server.settings import Settings
from testbed.text import parse_json, printable
from testbed.topology.disks import LIES, Disk, Nvme

_ANSWER_S = 30.0
# How long a process that has closed its output, or was killed, may take to end.
_END_S = 5.0
_MOST_CHARACTERS = 300
# Without the site's packages: they may lie where only we can go, and take time to find.
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from testbed.qemu.nbd_server.__main__ import main; main()"
_SOURCES = Path(__file__).parents[2]
# The settings of an export of the image below an overlay.
IMAGE = Settings(read_only=True)


class Export:
    """One exporting process, which ends when we do. `client`: QEMU's end of the connection, to be closed once QEMU has
    it.
    """

    def __init__(self, name: str, child: asyncio.subprocess.Process, client: socket.socket, log: Path) -> None:
        self._name, self._child, self.client, self._log = name, child, client, log
        self._on_end: Callable[[str], None] = _ignore_end
        self._one_command = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._awaited: tuple[int | None, asyncio.Future[dict[str, Any]]] | None = None
        self._why, self._is_over = "", False
        self._reading = asyncio.create_task(self._read_answers(), name=f"export of {name}")

    @classmethod
    async def start(
        cls,
        name: str,
        settings: Settings,
        *,
        file: Path | None,
        log: Path,
        host: Host | None,
        on_end: Callable[[str], None],
    ) -> Export:
        """Start a process that exports `file`, or no file, as `settings` say. Each failed request is a line of JSON in
        `log`.

        `host`: confine the process as this host supports it; None: do not. `on_end`: called with the reason when the
        process ends before `close`; QEMU's requests fail from then on.

        :raise HostError: it does not start.
        """
        child, client = await _spawn(name, settings, file, log, host)
        export = cls(name, child, client, log)
        try:
            await export._receive(None)
            export._on_end = on_end
            if export._is_over:
                raise export._ended()
        except BaseException:
            await export.close()
            raise
        return export

    async def set_latency(self, latency: Latency) -> None:
        await self._send("latency", **asdict(latency))

    async def set_faults(self, faults: tuple[Fault, ...]) -> None:
        await self._send("faults", faults=[asdict(fault) for fault in faults])

    async def hold(self, seconds: float) -> None:
        """Complete no request for that long; 0 releases those that are held."""
        await self._send("hold", seconds=seconds)

    async def complete_delayed(self) -> None:
        """Complete all delayed requests now."""
        await self._send("hurry")

    async def lose_cache(self, share: float, seed: int, *, end: bool = False) -> int:
        """Empty the volatile cache: each block is written with the probability `share`, or lost. `end`: complete no
        request from now on.

        Returns the number of lost blocks.
        """
        lost = (await self._send("lose", share=share, seed=seed, end=end)).get("lost_blocks")
        if not isinstance(lost, int):
            raise HostError(f"disk {self._name}: its export: expected a number of lost blocks, got {lost!r}")
        return lost

    async def _send(self, verb: str, **arguments: Any) -> dict[str, Any]:
        async with self._one_command:
            number = next(self._numbers)
            assert self._child.stdin is not None
            with contextlib.suppress(ConnectionError):  # then there is no answer either
                self._child.stdin.write(json.dumps({"verb": verb, "number": number, **arguments}).encode() + b"\n")
                await self._child.stdin.drain()
            return await self._receive(number)

    async def _receive(self, number: int | None) -> dict[str, Any]:
        """Wait for the answer of that number; answers that come too late are dropped."""
        if self._reading.done():
            raise self._ended()
        answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._awaited = number, answered
        try:
            async with asyncio.timeout(_ANSWER_S):
                await asyncio.wait((answered, self._reading), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise HostError(
                f"disk {self._name}: its export: expected an answer within {_ANSWER_S:.0f} s, got none"
            ) from None
        finally:
            self._awaited = None
        if not answered.done():
            raise self._ended()
        answer = answered.result()
        if "error" in answer:
            raise HostError(f"disk {self._name}: its export: {printable(str(answer['error']))}")
        return answer

    def _ended(self) -> HostError:
        return HostError(
            f"disk {self._name}: its export ended: {self._why or 'it was killed, or failed'}; see {self._log}"
        )

    async def _read_answers(self) -> None:
        """Read the process's answers until it ends, and then call `on_end`.

        `on_end` must be called before the guest can notice that its disk is gone. So it does not wait for the exit
        status: when a process ends, its output is closed first.
        """
        assert self._child.stdout is not None
        try:
            while line := await self._child.stdout.readline():
                message = parse_json(line)
                if "ends" in message:
                    self._why = printable(str(message["ends"]))[:_MOST_CHARACTERS]
                elif self._awaited is not None:
                    number, answered = self._awaited
                    if message.get("number") == number and not answered.done():
                        answered.set_result(message)
        except (ValueError, TypeError, AttributeError) as error:  # the process is no longer trusted
            self._why = f"an answer cannot be parsed: {printable(str(error))[:_MOST_CHARACTERS]}"
            self._kill()
        self._is_over = True
        self._on_end(str(self._ended()))
        try:
            async with asyncio.timeout(_END_S):
                while await self._child.stdout.read(1 << 16):  # unread output would keep its pipe open
                    pass
                status = await self._child.wait()
        except TimeoutError:
            self._kill()
            status = await self._child.wait()
        self._why = self._why or (f"signal {-status}" if status < 0 else f"status {status}")

    def _kill(self) -> None:
        # Not `self._child.kill()`: it reaps a process that has just ended, and `wait` would not get the status.
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill the process; what is in its cache is lost."""
        self.client.close()
        self._on_end = _ignore_end
        self._kill()
        await asyncio.wait((self._reading,))


async def _spawn(
    name: str, settings: Settings, file: Path | None, log: Path, host: Host | None
) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """Start the process; returns QEMU's end of its connection as well."""
    own, client = socket.socketpair()
    with own, contextlib.ExitStack() as unless_started, contextlib.ExitStack() as ours:
        unless_started.enter_context(client)
        pass_fds = [own.fileno()]
        if file is not None:
            pass_fds.append(_open_file(name, file, read_only=settings.read_only))
            ours.callback(os.close, pass_fds[-1])
        settings = replace(
            _confined(settings, host),
            wire=pass_fds[0],
            file=pass_fds[1] if file is not None else None,
            parent=os.getpid(),
        )
        python = [sys.executable, "-I", "-S", *_bytecode_options(), "-c", _PROGRAM]
        # It requests the death signal itself: the kernel would clear the request when the process changes its account.
        child = await process.start(
            [*python, str(_SOURCES), json.dumps(asdict(settings))],
            output=log,
            pipes=True,
            prefix=(),
            pass_fds=tuple(pass_fds),
            inherit_env=jail.ENVIRONMENT,
        )
        unless_started.pop_all()
    return child, client


def _bytecode_options() -> tuple[str, ...]:
    """Return the options that keep compiled modules where this process keeps them; with `-I` Python ignores the
    variables.
    """
    if sys.dont_write_bytecode:
        return ("-B",)
    return ("-X", f"pycache_prefix={sys.pycache_prefix}") if sys.pycache_prefix else ()


def _ignore_end(why: str) -> None:
    del why


def _open_file(name: str, file: Path, *, read_only: bool) -> int:
    """Open a disk's file; follows no link and does not block at a pipe, which QEMU's account could have put there.

    :raise HostError: it is not a regular file, or cannot be opened.
    """
    try:
        descriptor = os.open(
            file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise OSError(errno.EINVAL, "expected a file")
    except OSError as error:
        raise HostError(f"disk {name}: {file}: cannot be exported: {error.strerror}") from error


def _confined(settings: Settings, host: Host | None) -> Settings:
    """Add to the settings that the process is confined as QEMU is on this host."""
    if host is None:
        return settings
    account, support = host.account, host.jail
    uid, gid = (None, None) if account is None else (account.uid, account.gid)
    return replace(settings, uid=uid, gid=gid, mount_ns=support.mount_ns, confined=support.confined)


def export_settings(name: str, disk: Disk, storage: Storage | None) -> Settings:
    """Return the settings of an export of a disk, or of one of its namespaces, that `storage` holds."""
    block_bytes = 1  # QEMU reads and writes a qcow2 file at any offset
    if storage is None or storage.format == "raw":
        device = blockdev.namespaces(disk).get(name, disk)
        size_bytes = disk.size if storage is None else storage.size_bytes
        block_bytes = 1 if size_bytes % device.logical_block_size else device.logical_block_size
    return Settings(
        read_only=disk.read_only,
        block_bytes=block_bytes,
        room_bytes=blockdev.most_bytes(disk) if storage is None or storage.format == "qcow2" else 0,
        cache_bytes=disk.cache_size if disk.cache is not None else 0,
        cache_lies=disk.cache == LIES,
        # QEMU's nvme writes without flags, whatever its guest's command says (hw/nvme/ctrl.c: nvme_blk_write); a power
        # cut would take what fsync has acknowledged (seen with ext4 and xfs).
        drops_fua=isinstance(disk, Nvme),
    )
