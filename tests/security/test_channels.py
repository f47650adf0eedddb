"""Guests and servers that send garbage or endless data over SSH, the agent's port or QMP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncssh
import pytest

from testbed.errors import CommandFailed, GuestError, WireBroken
from testbed.guest.channels import agent as agents
from testbed.guest.channels import ssh
from testbed.guest.channels.agent import Agent
from testbed.guest.channels.ssh import Shell
from testbed.guest.channels.ssh_endpoint import Credentials, ForwardedPort
from testbed.guest.channels.ssh_keys import SshKey
from testbed.host.logfile import Log
from testbed.qemu.monitor import Monitor
from tests.support.control_characters import CODES
from tests.support.qmp_server import fake_qmp
from tests.unit.qemu.test_monitor import connected

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[int]:
    """Serve a port of this machine with an answer."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def connect(port: int, host_key: str = SshKey.new().public) -> Shell:
    endpoint = ForwardedPort("g0", None)
    endpoint.port = port
    wire = await endpoint.connect()
    credentials = Credentials(key=SshKey.new(), host_key=host_key)
    return await Shell.connect("g0", wire, credentials=credentials, endpoint=endpoint, command_s=30)


@pytest.mark.parametrize(
    "said",
    [
        os.urandom(4096),
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"SSH-2.0-x\r\n" + b"\xff" * 4096,
        b"\x1b[2J\r\n" * 5000,
        b"SSH-1.0-old\r\n",
    ],
    ids=["noise", "http", "a packet of 4 GiB", "a banner without end", "an old protocol"],
)
async def test_garbage_instead_of_ssh_is_an_error_at_once(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await reader.read(4096)
        writer.close()

    async with answering(answer) as port, asyncio.timeout(30):
        with pytest.raises(WireBroken, match="guest g0: SSH: "):
            await connect(port)


async def test_an_endless_line_instead_of_ssh_costs_no_memory() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                writer.write(b"x" * 65536)
                await writer.drain()

    tracemalloc.start()
    try:
        async with answering(answer) as port, asyncio.timeout(60):
            with pytest.raises(WireBroken):
                await connect(port)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


class _Anybody(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


@contextlib.asynccontextmanager
async def ssh_server(
    key: SshKey, command: Callable[[asyncssh.SSHServerProcess[bytes]], Awaitable[None]]
) -> AsyncIterator[int]:
    host_key = asyncssh.import_private_key(key.openssh)
    async with asyncssh.listen(
        "127.0.0.1", 0, server_factory=_Anybody, server_host_keys=[host_key], process_factory=command, encoding=None
    ) as server:
        yield server.get_port()


async def test_a_guest_with_another_host_key_is_refused() -> None:
    async def nothing(child: asyncssh.SSHServerProcess[bytes]) -> None:
        child.exit(0)

    async with ssh_server(SshKey.new(), nothing) as port, asyncio.timeout(30):
        with pytest.raises(GuestError, match="expected the host key that this guest was given, got another"):
            await connect(port)


async def test_endless_output_costs_no_memory_and_its_control_characters_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_MAX_OUTPUT_BYTES", 1 << 20)
    sent_bytes = 64 << 20

    async def flood(child: asyncssh.SSHServerProcess[bytes]) -> None:
        child.stderr.write(CODES.encode())
        for _ in range(sent_bytes >> 16):
            child.stdout.write(b"y" * 65536)
            await child.stdout.drain()
        child.exit(3)

    key = SshKey.new()
    async with ssh_server(key, flood) as port, asyncio.timeout(60):
        guest = await connect(port, key.public)
        tracemalloc.start()
        try:
            result = await guest.run(["yes"], check=False)
            assert tracemalloc.get_traced_memory()[1] < 24 << 20
        finally:
            tracemalloc.stop()
        assert (len(result.stdout), result.status, result.stderr) == (1 << 20, 3, CODES)
        with pytest.raises(CommandFailed, match="expected status 0, got 3") as failed:
            await guest.run(["yes"])
        assert "\x1b" not in str(failed.value)
        await guest.close()


def test_a_file_above_the_size_limit_is_not_copied() -> None:
    told = ssh._at_most("g0", ssh._MAX_FILE_BYTES)
    told(b"/log", b"log", 10, 1 << 30)
    for copied, total in ((1 << 40, 0), (0, 1 << 40)):
        with pytest.raises(GuestError, match="/log: expected a file of at most 17179869184 bytes, got more"):
            told(b"/log", b"log", copied, total)


async def test_an_endless_answer_of_the_agent_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_MAX_ANSWER_BYTES", 100_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"cgroup /x 1\n" * 100)
                await writer.drain()

    server = await asyncio.start_unix_server(answer, tmp_path / "agent")
    agent = Agent("g0")
    await agent.connect(tmp_path / "agent")
    async with asyncio.timeout(30):
        with pytest.raises(GuestError, match="agent: expected at most 100000 bytes before `cgroups`, got more"):
            await agent.ask("cgroups")
    agent.close()
    server.close()


async def test_an_endless_qmp_message_ends_the_connection(tmp_path: Path) -> None:
    async with connected(tmp_path, {}) as (wire, fake, _), asyncio.timeout(60):
        asked = asyncio.create_task(wire.execute("query-status"))
        while len(fake.asked) < 2:
            await asyncio.sleep(0)
        for _ in range(12):
            for writer in fake._writers:
                writer.write(b'"' + b"x" * (1 << 20))
        with pytest.raises(WireBroken):
            await asked


async def test_qmp_commands_have_qemus_paths_and_the_log_has_ours(tmp_path: Path) -> None:
    async with fake_qmp(tmp_path / "qmp", {"blockdev-add": {}}) as fake:
        log = Log(tmp_path / "qmp.jsonl", lambda why: None)
        wire = Monitor("g0", log, lambda *_: None, lambda said: {"filename": "/dev/fdset/1"} if said else said)
        await wire.connect(tmp_path / "qmp")
        await wire.execute("blockdev-add", {"filename": "/root/x"})
        assert fake.asked[-1] == ("blockdev-add", {"filename": "/dev/fdset/1"})
        assert json.loads((tmp_path / "qmp.jsonl").read_text())["arguments"] == {"filename": "/root/x"}
        await wire.close()


def test_a_log_that_a_guest_fills_says_where_it_was_cut(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", lambda why: None, 1000)
    for _ in range(1000):
        log.add("x" * 99 + "\n")
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 10 and lines[-1] == "[testbed: the log is full, the rest is left out: log]"
