"""Sockets that QEMU, guests or other commands write to: they use limited memory and time, and their end is noticed."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import WireBroken
from testbed.guest.channels import kernel_log
from testbed.guest.channels.console import Console
from testbed.guest.lifecycle import Loss
from testbed.guest.liveness import Liveness
from testbed.host import logfile
from testbed.host.logfile import Log
from testbed.qemu import frame_switch
from testbed.qemu.blocking_monitor import BlockingMonitor
from testbed.qemu.frame_switch import SwitchPort
from testbed.qemu.monitor import Monitor
from testbed.vms import control
from tests.support.qmp_server import fake_qmp

_FLOOD = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
    flood.connect(sys.argv[1])
    for _ in range(int(sys.argv[2])):
        flood.send(b"frame")
"""


async def test_a_guest_that_floods_its_network_does_not_block_the_event_loop(tmp_path: Path) -> None:
    """Frames arrive faster than they are read, so there is always another one."""
    plug, frames, turns = (
        SwitchPort(outlet=tmp_path / "out", inlet=tmp_path / "in", others=(tmp_path / "away",)),
        20_000,
        0,
    )
    plug.open()
    flood = await asyncio.create_subprocess_exec(sys.executable, "-c", _FLOOD, str(tmp_path / "out"), str(frames))
    ended = asyncio.create_task(flood.wait())
    while not ended.done():
        await asyncio.sleep(0)
        turns += 1
    await plug.close()
    assert ended.result() == 0 and turns > frames / frame_switch._FRAMES_AT_ONCE


@pytest.mark.parametrize("size_bytes", [0, 2, 1 << 16])
async def test_frames_for_a_peer_that_reads_none_use_limited_memory(size_bytes: int) -> None:
    """Their number is limited as well: a QEMU that a guest controls can send empty frames without end."""
    queue = frame_switch._Queue()
    for number in range(400_000 if size_bytes < 3 else 1000):
        queue.put(number.to_bytes(4, "big")[4 - size_bytes :].ljust(size_bytes))
    assert len(queue._frames) > 100
    taken = 0
    while queue._frames:
        taken += sys.getsizeof(await queue.get())
    assert taken <= frame_switch._MOST_QUEUED_BYTES and queue._bytes == 0


async def test_a_console_whose_reader_failed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a guest could panic unnoticed, and its run would pass."""

    def broken(self: kernel_log.ConsoleReader, line: str) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(kernel_log.ConsoleReader, "take", broken)
    trouble: asyncio.Queue[str] = asyncio.Queue()
    own, qemu = socket.socketpair()
    with own, qemu:
        reader, writer = await asyncio.open_unix_connection(sock=own)
        monkeypatch.setattr("testbed.guest.channels.console.open_channel", lambda path: _given(reader, writer))
        watched = Console(tmp_path / "console.log", lambda finding: None, trouble.put_nowait)
        await watched.connect(tmp_path / "console")
        qemu.send(b"a line\n")
        async with asyncio.timeout(20):
            assert (
                "its console is no longer read: a mistake of the testbed: RecursionError: too deep"
                in await trouble.get()
            )
        await watched.close()


async def _given(*what: Any) -> tuple[Any, ...]:
    return what


async def test_an_invalid_event_of_qemu_is_reported(tmp_path: Path) -> None:
    async with fake_qmp(tmp_path / "qmp", {}) as fake:
        wire = Monitor("g0", Log(tmp_path / "qmp.jsonl", pytest.fail), lambda name, data: None)
        await wire.connect(tmp_path / "qmp")
        waiting = asyncio.create_task(wire.closed())
        fake.event("STOP", {})
        fake.event("BLOCK_IO_ERROR", ["no object"])  # type: ignore[arg-type]  # as only a QEMU that was taken over says it
        with pytest.raises((ValueError, TypeError)):
            async with asyncio.timeout(20):
                await waiting
        await wire.close()


async def test_a_failed_task_of_a_guest_ends_the_guest(tmp_path: Path) -> None:
    async def failing() -> None:
        raise RuntimeError("nobody expected this")

    guest = Liveness(SimpleNamespace(name="g0", logs=tmp_path))  # type: ignore[arg-type]  # as much of an order as it needs
    await guest._watch(failing())
    assert (
        guest.loss is Loss.HOST and "a mistake of the testbed: RuntimeError: nobody expected this" in await guest.lost()
    )


def test_only_the_end_of_a_huge_log_of_qemu_is_read(tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, 2)
        file.write(b"its last words\n")
    assert logfile.tail(log).endswith("its last words") and len(logfile.tail(log)) <= 4096


@pytest.mark.parametrize("said", [b"[]\n", b"1\n", b"[" * 100_000 + b"\n"])
def test_an_invalid_qmp_message_ends_the_connection(said: bytes, tmp_path: Path) -> None:
    poller = BlockingMonitor("g0", tmp_path / "poll")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "poll"))
        listener.listen()
        poller._socket = socket.socket(socket.AF_UNIX)
        poller._socket.connect(str(tmp_path / "poll"))
        qemu, _ = listener.accept()
        with qemu:
            qemu.sendall(said)
            with pytest.raises(WireBroken, match="QEMU's monitor for samples went away during query-status"):
                poller.execute("query-status")


# The socket of commands
# --------------------------------------------------------------------------------------------------------------


async def _asked(path: Path, line: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    writer.write_eof()
    found: dict[str, Any] = json.loads(await reader.readline())
    writer.close()
    return found


async def _well(asked: dict[str, Any]) -> dict[str, Any]:
    return {"well": int(asked["number"])}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"",
        b"nonsense\n",
        b"[]\n",
        b'{"verb": []}\n',
        b"[" * 100_000 + b"\n",
        b'{"verb": "well", "number": []}\n',
        b"x" * (9 << 20) + b"\n",
    ],
)
async def test_any_request_on_the_control_socket_is_answered_and_the_next_one_too(line: bytes, tmp_path: Path) -> None:
    async with control.listen(
        tmp_path / "control", lambda reader, writer: control.answer_request("g0", {"well": _well}, reader, writer)
    ):
        assert (await _asked(tmp_path / "control", line))["error"].startswith("g0: ")
        assert await _asked(tmp_path / "control", b'{"verb": "well", "number": 1}\n') == {"well": 1}


async def test_idle_connections_leave_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MOST_CONNECTIONS", 4)
    path = tmp_path / "control"
    async with control.listen(
        path, lambda reader, writer: control.answer_request("g0", {"well": _well}, reader, writer)
    ):
        silent = [await asyncio.open_unix_connection(path) for _ in range(4)]
        refused, writer = await asyncio.open_unix_connection(path)
        assert await refused.read() == b""
        writer.close()
        silent[0][1].close()
        while (said := await _tried(path)) is None:
            pass
        assert said == {"well": 1}
        for _, writer in silent:
            writer.close()


async def test_an_idle_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_LINE_S", 0.0)
    async with control.listen(
        tmp_path / "control", lambda reader, writer: control.answer_request("g0", {}, reader, writer)
    ):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control")
        assert b"expected a verb" in await reader.read()
        writer.close()


async def _tried(path: Path) -> dict[str, Any] | None:
    """None if there is no free connection yet."""
    try:
        return await _asked(path, b'{"verb": "well", "number": 1}\n')
    except (ValueError, ConnectionError):
        return None
