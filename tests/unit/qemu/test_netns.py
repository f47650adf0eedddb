"""A network namespace in which only its creator can make sockets, tried from outside and inside."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from testbed.errors import WireBroken
from testbed.host import sockets
from testbed.host.facts import Account
from testbed.qemu import jail
from testbed.qemu.netns import NetworkNamespace

NOBODY = Account(uid=65534, gid=65534)
# Listens, says where, and echoes what each of its clients says.
ECHO = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    client.sendall(client.recv(100))
    client.close()
"""


@contextlib.contextmanager
def echoing(account: Account | None) -> Iterator[tuple[NetworkNamespace, int]]:
    """Start a program in a network namespace; returns it and the port where it listens."""
    netns = NetworkNamespace()
    with contextlib.closing(netns):
        words = [*jail.command_prefix(account, net_ns=netns.channel), sys.executable, "-I", "-S", "-c", ECHO]
        if account is not None:  # who may not start our Python
            words = [*words[:-5], "/usr/bin/python3", "-I", "-S", "-c", ECHO]
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=(netns.channel,)
        ) as program:
            try:
                assert program.stdout is not None and program.stderr is not None
                said = program.stdout.readline()
                if not said:
                    reason = program.stderr.read()
                    # Only this machine's own word is a reason not to try.
                    assert "cannot be kept from this machine: unshare" in reason, reason
                    pytest.skip(f"nobody like us may make a network namespace here: {reason.strip()}")
                yield netns, int(said)
            finally:
                program.kill()


@pytest.fixture(
    params=[
        None,
        pytest.param(NOBODY, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")),
    ]
)
def echo(request: pytest.FixtureRequest) -> Iterator[tuple[NetworkNamespace, int]]:
    with echoing(request.param) as found:
        yield found


async def test_only_the_creator_of_the_namespace_can_connect_as_often_as_it_likes(
    echo: tuple[NetworkNamespace, int],
) -> None:
    netns, port = echo
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    for number in range(20):
        with await sockets.connect_to_guest("g0", port, netns.socket) as wire:
            wire.setblocking(True)
            wire.sendall(f"hello {number}".encode())
            assert wire.recv(100) == f"hello {number}".encode()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208 - the two sockets for the one that they came by
    with pytest.raises(WireBroken, match="Connect call failed"):
        await sockets.connect_to_guest("g0", port)


async def test_several_connections_of_a_namespace_are_open_at_once(echo: tuple[NetworkNamespace, int]) -> None:
    netns, port = echo
    wires_there = [await sockets.connect_to_guest("g0", port, netns.socket) for _ in range(50)]
    assert len({wire.getsockname() for wire in wires_there}) == 50
    for wire in wires_there:
        wire.setblocking(True)
        wire.sendall(b"one")
        assert wire.recv(100) == b"one"
        wire.close()


def test_a_port_of_the_namespace_is_not_in_the_machines_tables(echo: tuple[NetworkNamespace, int]) -> None:
    _, port = echo
    with open("/proc/net/tcp", encoding="utf-8") as table:  # noqa: PTH123 - a line at a time
        assert not [line for line in table if f":{port:04X} " in line and " 0A " in line]


def test_a_program_in_the_namespace_cannot_take_our_connection(echo: tuple[NetworkNamespace, int]) -> None:
    """An unconfined QEMU that a guest has taken over could do this."""
    netns, port = echo
    netns.socket().close()
    listening, _ = netns._made_there
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(netns.socket()).connect(listening.getsockname())
        for _ in range(10):
            with netns.socket() as made:
                made.connect(("127.0.0.1", port))
                made.sendall(b"ours")
                assert made.recv(10) == b"ours"


async def test_a_program_without_its_namespace_is_an_error() -> None:
    netns = NetworkNamespace()
    with contextlib.closing(netns), pytest.raises(WireBroken, match="without its network namespace"):
        await sockets.connect_to_guest("g0", 1, netns.socket)


def test_the_program_inherits_no_socket_of_ours(echo: tuple[NetworkNamespace, int]) -> None:
    netns, port = echo
    made = netns.socket()
    made.connect(("127.0.0.1", port))
    made.sendall(b"x")
    assert made.recv(10) == b"x" and made.recv(10) == b""
    assert isinstance(made, socket.socket)
    made.close()
