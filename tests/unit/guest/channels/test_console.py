import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from testbed.errors import GuestError, WireBroken
from testbed.guest.channels import console as console_module
from testbed.guest.channels.agent import Agent
from testbed.guest.channels.console import Console
from testbed.guest.channels.kernel_log import Finding, Kind
from testbed.host import sockets


@asynccontextmanager
async def peer(socket: Path) -> AsyncIterator["asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]"]:
    """The other end of a wire, as QEMU's chardev is."""
    connected: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_unix_server(lambda reader, writer: connected.put_nowait((reader, writer)), socket)
    try:
        yield connected
    finally:
        server.close()


async def test_a_cancelled_connect_leaves_no_open_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[socket.socket] = []

    async def never(wire: socket.socket, address: object) -> None:
        opened.append(wire)
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    waiting = asyncio.create_task(sockets.connect_to_guest("g0", 1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [wire.fileno() for wire in opened] == [-1]


async def test_the_agent_is_asked_and_answers(tmp_path: Path) -> None:
    async with peer(tmp_path / "agent") as connected, asyncio.timeout(10):
        agent = Agent("g0")
        await agent.connect(tmp_path / "agent")
        reader, writer = await connected.get()
        agent.send("identity", name="g0", time_ns="1")
        assert await reader.readline() == b"identity name=g0 time_ns=1\n"
        writer.write(b"noise\r\nready kernel=6.1\n")
        assert await agent.expect("ready") == "kernel=6.1"
        agent.close()
        writer.close()


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (b"failed why=no room\n", GuestError, "got a failure: why=no room"),
        (b"", WireBroken, "the end of the wire"),
        (b"x" * 100_000, WireBroken, "expected a line `ready`"),
    ],
)
async def test_an_agent_that_fails_or_floods_is_an_error(
    tmp_path: Path, said: bytes, error: type[Exception], message: str
) -> None:
    async with peer(tmp_path / "agent") as connected, asyncio.timeout(10):
        agent = Agent("g0")
        await agent.connect(tmp_path / "agent")
        _, writer = await connected.get()
        writer.write(said)
        writer.close()
        with pytest.raises(error, match=message):
            await agent.expect("ready")
        agent.close()


async def test_the_console_is_kept_watched_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "_MAX_LOG_BYTES", 1000)
    fatal: list[Finding] = []
    async with peer(tmp_path / "console") as connected, asyncio.timeout(10):
        console = Console(tmp_path / "console.log", fatal.append, print)
        await console.connect(tmp_path / "console")
        _, writer = await connected.get()
        writer.write(b"[    1.000000] Linux version\r\n\x1b[2J[    2.000000] Kernel pa")
        writer.write(b"nic - not syncing: x\r\n" + b"flood " * 100_000 + b"\nthe last")
        writer.close()
        await console.wait_closed()
        await console.close()
    assert [finding.kind for finding in fatal] == [Kind.PANIC]
    assert console.tail()[0] == "[    1.000000] Linux version" and console.tail()[-1] == "the last"
    assert all(len(line) <= 1000 for line in console.tail())
    log = (tmp_path / "console.log").read_bytes()
    assert log.startswith(b"[    1.000000] Linux version") and log.endswith(b"\nthe last")
    assert b"bytes that the guest printed are left out here]" not in log  # its end is kept as well


async def test_the_log_of_a_flood_is_cut_in_the_middle_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than what is kept of a guest, so that it takes no minute.
    monkeypatch.setattr(console_module, "_MAX_LOG_BYTES", 1 << 20)
    monkeypatch.setattr(console_module, "_LAST_BYTES", 1 << 16)
    heard = 0

    def hear(data: bytes) -> None:
        nonlocal heard
        heard += len(data)

    async with peer(tmp_path / "console") as connected, asyncio.timeout(100):
        console = Console(tmp_path / "console.log", lambda finding: None, print)
        await console.connect(tmp_path / "console")
        _, writer = await connected.get()
        with console.listening(hear):
            writer.write(b"first words\n")
            for _ in range(4):
                writer.write((b"flood " * 20 + b"\n") * 8666)
                await writer.drain()
            writer.write(b"last words\n")
            writer.close()
            await console.wait_closed()
        await console.close()
    log = (tmp_path / "console.log").read_bytes()
    assert len(log) < (1 << 20) + (1 << 16) + 1000
    assert log.startswith(b"first words\n") and log.endswith(b"last words\n")
    assert console.printed_bytes == heard == 4 * 121 * 8666 + 12 + 11
    cut = heard - (1 << 20) - (1 << 16)
    assert f"[testbed: {cut} of {heard} bytes that the guest printed are left out here]".encode() in log


async def test_a_flood_of_one_kind_leaves_room_for_another(tmp_path: Path) -> None:
    async with peer(tmp_path / "console") as connected, asyncio.timeout(20):
        console = Console(tmp_path / "console.log", lambda finding: None, print)
        await console.connect(tmp_path / "console")
        _, writer = await connected.get()
        writer.write(b"[    1.000000] Buffer I/O error on dev vdc, logical block 8\n" * 2000)
        writer.write(b"[    2.000000] WARNING: block/bio.c:9 at submit_bio+0x1/0x2, CPU#0: dd/7\n")
        writer.close()
        await console.wait_closed()
        await console.close()
    assert [finding.kind for finding in console.findings] == [Kind.IO_ERROR] * 500 + [Kind.WARNING]


async def test_only_after_an_oops_is_more_output_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "_LAST_WORDS_S", 30.0)
    async with peer(tmp_path / "console") as connected, asyncio.timeout(20):
        console = Console(tmp_path / "console.log", lambda finding: None, print)
        await console.connect(tmp_path / "console")
        _, writer = await connected.get()
        writer.write(b"[    1.000000] systemd is not here\n")
        await console.wait_until_quiet()  # at once: nothing bad was said
        writer.write(b"[    2.000000] kernel BUG at lib/list_debug.c:53!\n")
        while not console.findings:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(console.wait_until_quiet())
        await asyncio.sleep(0.05)
        writer.write(b"[    2.100000] Call Trace:\n[    2.200000]  splat+0x1/0x2\n")
        await waiting
        assert "splat+0x1" in (tmp_path / "console.log").read_text()
        writer.close()
        await console.close()


async def test_a_late_answer_of_the_agent_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    async with peer(tmp_path / "agent") as connected, asyncio.timeout(10):
        agent = Agent("g0")
        await agent.connect(tmp_path / "agent")
        reader, writer = await connected.get()
        first = asyncio.create_task(agent.ask("counts"))
        assert (await reader.readline()) == b"counts turn=0\n"
        first.cancel()
        second = asyncio.create_task(agent.ask("counts", fresh="1"))
        assert (await reader.readline()) == b"counts turn=1 fresh=1\n"
        writer.write(
            b"group name=61 file=1\ncounts turn=0 uptime_ns=5\ngroup name=62 file=2\ncounts turn=1 uptime_ns=6\n"
        )
        assert await second == (("group name=62 file=2",), "turn=1 uptime_ns=6")
        agent.close()
        writer.close()
