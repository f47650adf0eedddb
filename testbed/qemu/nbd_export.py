"""Processes that export a disk's bytes to QEMU (`testbed.qemu.nbd_server`): one for each disk that has delays, losses or a volatile cache."""

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
# How long one that says nothing more may take to end.
_END_S = 5.0
_MOST_CHARACTERS = 300
# Without what may lie where only we can go, and takes its time: the site's packages.
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from testbed.qemu.nbd_server.__main__ import main; main()"
_SOURCES = Path(__file__).parents[2]


class Export:
    """One such process; it ends when we do. `client`: the end of its connection that is QEMU's, to be closed once that has it."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, client: socket.socket, log: Path) -> None:
        self._name, self._child, self.client, self._log = name, child, client, log
        self._on_end: Callable[[str], None] = _expected
        self._turn = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._asked: tuple[int | None, asyncio.Future[dict[str, Any]]] | None = None
        self._why, self._is_over = "", False
        self._listening = asyncio.create_task(self._listen(), name=f"export of {name}")

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
        """Export a file, or nothing, as `settings` say; what goes wrong with its requests is written to `log`, a line of JSON each.

        `host`: keep it from this machine as that can; None: do not. `on_end`: hears why it has ended before `close`; the client's
        requests fail from then on.

        :raise HostError: it does not start.
        """
        own, client = socket.socketpair()
        with own, contextlib.ExitStack() as unless_started, contextlib.ExitStack() as ours:
            unless_started.enter_context(client)
            handed = [own.fileno()]
            if file is not None:
                handed.append(_opened(name, file, read_only=settings.read_only))
                ours.callback(os.close, handed[-1])
            settings = replace(
                _held(settings, host), wire=handed[0], file=handed[1] if file is not None else None, parent=os.getpid()
            )
            words = [
                sys.executable,
                "-I",
                "-S",
                *_bytecode(),
                "-c",
                _PROGRAM,
                str(_SOURCES),
                json.dumps(asdict(settings)),
            ]
            # It dies with us by its own doing: the signal for that would be taken away when it becomes another account.
            child = await process.start(
                words, output=log, talking=True, within=(), handed=tuple(handed), inherited=jail.ENVIRONMENT
            )
            unless_started.pop_all()
        found = cls(name, child, client, log)
        try:
            await found._answer(None)
            found._on_end = on_end
            if found._is_over:
                raise found._ended()
        except BaseException:
            await found.close()
            raise
        return found

    async def delay(self, latency: Latency) -> None:
        await self._tell("latency", **asdict(latency))

    async def fail(self, faults: tuple[Fault, ...]) -> None:
        await self._tell("faults", faults=[asdict(fault) for fault in faults])

    async def hold(self, seconds: float) -> None:
        """Let no request end for so long; 0 lets them go."""
        await self._tell("hold", seconds=seconds)

    async def hurry(self) -> None:
        """End all requests that wait for their time."""
        await self._tell("hurry")

    async def lose(self, share: float, seed: int, *, end: bool = False) -> int:
        """Each block that is only in the cache stays with the probability `share`; `end`: no request ends from now on.

        Returns how many blocks were lost.
        """
        lost = (await self._tell("lose", share=share, seed=seed, end=end)).get("lost_blocks")
        if not isinstance(lost, int):
            raise HostError(f"disk {self._name}: its export: expected a number of lost blocks, got {lost!r}")
        return lost

    async def _tell(self, verb: str, **words: Any) -> dict[str, Any]:
        async with self._turn:
            number = next(self._numbers)
            assert self._child.stdin is not None
            with contextlib.suppress(ConnectionError):  # then there is no answer either
                self._child.stdin.write(json.dumps({"verb": verb, "number": number, **words}).encode() + b"\n")
                await self._child.stdin.drain()
            return await self._answer(number)

    async def _answer(self, number: int | None) -> dict[str, Any]:
        """The answer of that number; one that comes too late is nobody's."""
        if self._listening.done():
            raise self._ended()
        asked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked = number, asked
        try:
            async with asyncio.timeout(_ANSWER_S):
                await asyncio.wait((asked, self._listening), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise HostError(
                f"disk {self._name}: its export: expected an answer within {_ANSWER_S:.0f} s, got none"
            ) from None
        finally:
            self._asked = None
        if not asked.done():
            raise self._ended()
        answer = asked.result()
        if "error" in answer:
            raise HostError(f"disk {self._name}: its export: {printable(str(answer['error']))}")
        return answer

    def _ended(self) -> HostError:
        return HostError(
            f"disk {self._name}: its export ended: {self._why or 'it was killed, or failed'}; see {self._log}"
        )

    async def _listen(self) -> None:
        """Until its end, which nobody may miss. Who waits for it is told before the guest can have seen that its disk is gone: a process's
        end closes its output first, and its status comes later.
        """
        assert self._child.stdout is not None
        try:
            while line := await self._child.stdout.readline():
                said = parse_json(line)
                if "ends" in said:
                    self._why = printable(str(said["ends"]))[:_MOST_CHARACTERS]
                elif self._asked is not None and said.get("number") == self._asked[0] and not self._asked[1].done():
                    self._asked[1].set_result(said)
        except (ValueError, TypeError, AttributeError) as error:  # it is not trusted any longer
            self._why = f"it says what it never says: {printable(str(error))[:_MOST_CHARACTERS]}"
            self._kill()
        self._is_over = True
        self._on_end(str(self._ended()))
        try:
            async with asyncio.timeout(_END_S):
                while await self._child.stdout.read(1 << 16):  # what it said beside; without that its pipe stays open
                    pass
                status = await self._child.wait()
        except TimeoutError:
            self._kill()
            status = await self._child.wait()
        self._why = self._why or (f"signal {-status}" if status < 0 else f"status {status}")

    def _kill(self) -> None:
        # Not by its own `kill`, which takes the status of one that has just ended away from who waits for it.
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End it, with what is in its cache."""
        self.client.close()
        self._on_end = _expected
        self._kill()
        await asyncio.wait((self._listening,))


def _bytecode() -> tuple[str, ...]:
    """Where compiled modules are kept, as for this process; with `-I` no variable says it."""
    if sys.dont_write_bytecode:
        return ("-B",)
    return ("-X", f"pycache_prefix={sys.pycache_prefix}") if sys.pycache_prefix else ()


def _expected(why: str) -> None:
    del why


def _opened(name: str, file: Path, *, read_only: bool) -> int:
    """A descriptor of the file that a disk is kept in: QEMU's account could have put a link there, or a pipe.

    :raise HostError: it is no file, or not ours to open.
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


def _held(settings: Settings, host: Host | None) -> Settings:
    """As this machine can hold it: as it holds QEMU."""
    if host is None:
        return settings
    account, found = host.account, host.confinement
    uid, gid = (None, None) if account is None else (account.uid, account.gid)
    return replace(settings, uid=uid, gid=gid, apart=found.apart, confined=found.confined)


# Of an image that a disk is an overlay of.
IMAGE = Settings(read_only=True)


def export_settings(name: str, disk: Disk, kept: Storage | None) -> Settings:
    """What an export of a disk, or of a namespace of it, is like. `kept`: what that is kept in."""
    block_bytes = 1  # what a qcow2 file is read and written in
    if kept is None or kept.format == "raw":
        wanted = (
            blockdev.namespaces(disk)[name].logical_block_size
            if name in blockdev.namespaces(disk)
            else disk.logical_block_size
        )
        block_bytes = 1 if (disk.size if kept is None else kept.size_bytes) % wanted else wanted
    return Settings(
        read_only=disk.read_only,
        block_bytes=block_bytes,
        room_bytes=blockdev.most_bytes(disk) if kept is None or kept.format == "qcow2" else 0,
        cache_bytes=disk.cache_size if disk.cache is not None else 0,
        cache_lies=disk.cache == LIES,
        # QEMU's nvme writes without flags, whatever its guest's command says (hw/nvme/ctrl.c: nvme_blk_write); a power
        # cut would take what fsync has acknowledged (seen with ext4 and xfs).
        drops_fua=isinstance(disk, Nvme),
    )
