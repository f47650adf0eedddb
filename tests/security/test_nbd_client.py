"""A client that breaks the protocol: the exporting process answers with errors, and uses limited memory and time."""

from __future__ import annotations

import io
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.qemu.nbd_server import server
from testbed.qemu.nbd_server.backing import DiscardingBacking
from testbed.qemu.nbd_server.device import Device
from testbed.qemu.nbd_server.protocol import Protocol
from tests.support.nbd_client import (
    FLUSH,
    HELLO,
    KIB,
    MIB,
    READ,
    REFUSED,
    WRITE,
    ZEROES,
    greet,
    received,
    replied,
    request,
)
from tests.support.nbd_server import Process


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, block_bytes=512, confined=True)
    process.client.settimeout(30)
    yield process
    process.child.kill()
    process.end()


def peak_kib(pid: int) -> int:
    return next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def test_a_write_beyond_the_end_of_the_disk_is_refused(process: Process, tmp_path: Path) -> None:
    greet(process.client)
    process.tell(verb="latency", read_us=1000, write_us=1000)
    for error, asked in REFUSED:
        if len(asked) < 10000:
            process.client.sendall(asked)
            assert replied(process.client) == (error, 7)
    process.client.sendall(request(WRITE, 0, 512, b"x" * 512, cookie=9))
    assert replied(process.client) == (0, 9)
    assert (tmp_path / "disk").stat().st_size == MIB and (tmp_path / "disk").read_bytes()[:512] == b"x" * 512


@pytest.mark.parametrize(("command", "each"), [(WRITE, MIB), (READ, MIB), (ZEROES, MIB), (FLUSH, 0)])
def test_delayed_requests_use_limited_memory(process: Process, command: int, each: int) -> None:
    """The client keeps sending requests that are not answered, and the process stops reading them."""
    greet(process.client)
    process.tell(verb="hold", seconds=3600)
    process.client.setblocking(False)
    asked, sent_bytes = request(command, 0, each, bytes(each if command == WRITE else 0)), 0
    rest = memoryview(asked)
    while sent_bytes < 256 * MIB:
        try:
            sent = process.client.send(rest)
        except BlockingIOError:
            # Wait until it has read all requests that it accepts; its memory grows no further.
            if process.tell(verb="latency") and not _writable(process.client):
                break
            continue
        sent_bytes += sent
        rest = rest[sent:] or memoryview(asked)
    assert sent_bytes < 128 * MIB
    assert peak_kib(process.child.pid) < 200 * KIB


def _writable(client: socket.socket) -> bool:
    return bool(select.select([], [client], [], 1)[1])


def test_unread_replies_use_limited_memory(process: Process) -> None:
    greet(process.client)
    process.client.sendall(request(READ, 0, MIB) * 256)
    for _ in range(3):
        process.tell(verb="latency")
    assert peak_kib(process.child.pid) < 60 * KIB
    for _ in range(256):
        assert replied(process.client) == (0, 7)
        assert received(process.client, MIB) == bytes(MIB)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", HELLO + bytes(28)])
def test_a_client_that_breaks_the_protocol_ends_the_process_with_a_reason(process: Process, said: bytes) -> None:
    process.client.sendall(said)
    assert process.said()["ends"].startswith("its client: expected ")
    assert process.child.wait(20) == 1
    while process.client.recv(4096):
        pass  # the client sees the end: requests fail and do not hang


@pytest.mark.parametrize("half", [b"", HELLO[:7], HELLO + request(WRITE, 0, 512)])
def test_after_a_client_disconnects_the_process_still_obeys_its_owner(
    process: Process, half: bytes, tmp_path: Path
) -> None:
    process.client.sendall(half)
    process.client.close()
    assert process.tell(verb="hurry") == {"number": None}
    assert (tmp_path / "disk").read_bytes() == bytes(MIB)


def test_the_negotiation_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_NEGOTIATION_S", 0.0)
    own, other = socket.socketpair()
    with own, other:
        device = Device(DiscardingBacking(MIB), log=io.StringIO())
        client = server.Client(own, Protocol(size_bytes=MIB), device)
        client.step()  # the client has sent nothing yet
        other.sendall(HELLO[:7])
        client.receive()
        assert client.deadline is not None
        with pytest.raises(server.BadClient, match="expected an end of its negotiation"):
            while True:
                client.step()


_LIBNBD = """
import nbd
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_socket({client})
assert h.get_size() == 1 << 20 and h.get_block_size(nbd.SIZE_MINIMUM) == 512
assert h.can_fua() and h.can_trim() and not h.is_read_only()
h.pwrite(b"x" * 4096, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 4096) == b"x" * 4096
h.trim(512, 4096)
h.zero(512, 5120)
assert h.pread(2048, 4096) == (bytes(512) + b"x" * 512) * 2
h.flush()
def error(call, *words):
    try:
        call(*words)
    except nbd.Error as found:
        return found.errno
    return "none"
assert error(h.pwrite, bytes(4096), 10 << 40) == "ENOSPC"
assert error(h.pwrite, bytes(1024), (1 << 20) - 512) == "ENOSPC"
assert error(h.pread, 512, 1 << 62) == "EINVAL"
assert error(h.pread, 100, 0) == "EINVAL"
assert error(h.pread, 512, 7) == "EINVAL"
assert error(h.zero, 1024, (1 << 20) - 512) == "ENOSPC"
assert error(h.cache, 512, 0) == "EINVAL"
assert h.pread(512, 0) == bytes(512)
for number in range(64):
    h.aio_pread(nbd.Buffer(1 << 20), 0)
while h.aio_in_flight():
    h.poll(-1)
h.shutdown()
print("well")
"""


# Debian's libnbd module works only with Debian's own Python.
@pytest.mark.skipif(
    not Path("/usr/lib/python3/dist-packages/nbd.py").exists(),
    reason="python3-libnbd is not here; `./tb test` installs it",
)
def test_libnbd_gets_the_replies_of_the_protocol(process: Process) -> None:
    words = ["/usr/bin/python3", "-c", _LIBNBD.format(client=process.client.fileno())]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60, pass_fds=(process.client.fileno(),)
    )
    assert done.stdout == "well\n", done.stderr
