"""A client of an export that is none of ours: what it asks is answered by the errors of the protocol, and costs bounded memory."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import HostError
from testbed.host.facts import Account, Host, JailSupport
from testbed.qemu import blockdev, nbd_export
from testbed.qemu.nbd_export import Export
from testbed.qemu.nbd_server import protocol as nbd
from testbed.qemu.nbd_server import server
from testbed.qemu.nbd_server.backing import DiscardingBacking
from testbed.qemu.nbd_server.device import Device
from testbed.qemu.nbd_server.protocol import ConnectionEnded, NbdRequest, Protocol, SendBytes
from testbed.qemu.nbd_server.settings import Settings
from testbed.topology.disks import Nvme, VirtioBlk
from tests.support.values import host, may_mount
from tests.unit.qemu.test_nbd_server import Process

KIB, MIB = 1 << 10, 1 << 20
OPTION, REQUEST = 0x49484156454F5054, 0x25609513
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES, STATUS, RESIZE = range(9)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EXPORT_NAME, ABORT, LIST, PEEK, STARTTLS, INFO, GO, STRUCTURED = range(1, 9)
ACK, UNSUPPORTED, INVALID, TOO_BIG = 1, (1 << 31) + 1, (1 << 31) + 3, (1 << 31) + 9
HELLO = struct.pack(">I", 3) + struct.pack(">QII", OPTION, EXPORT_NAME, 0)


def option(kind: int, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">QII", OPTION, kind, len(data) if length is None else length) + data


def named(name: bytes = b"", *wanted: int) -> bytes:
    """The data of INFO and GO."""
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def request(
    command: int, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0, cookie: int = 7
) -> bytes:
    return struct.pack(">IHHQQI", REQUEST, flags, command, cookie, offset, length) + data


def events(protocol: Protocol, data: bytes) -> list[nbd.Event]:
    """What bytes of a client mean, until more are needed or there is an end."""
    protocol.receive(data)
    found: list[nbd.Event] = []
    while (event := protocol.next_event()) is not None:
        found.append(event)
        if isinstance(event, ConnectionEnded):
            break
    return found


def talking(**said: int) -> Protocol:
    """One that has negotiated, of 1 MiB in blocks of 512 bytes."""
    protocol = Protocol(**{"size_bytes": MIB, "block_bytes": 512, **said})  # type: ignore[arg-type]  # a test's own words
    events(protocol, HELLO)
    assert protocol.transmitting
    return protocol


# Requests, one by one ----------------------------------------------------------------------------------------------------------------

REFUSED = [
    (errno.ENOSPC, request(WRITE, 10 << 40, 4096, bytes(4096))),
    (errno.ENOSPC, request(WRITE, MIB, 512, bytes(512))),
    (errno.ENOSPC, request(WRITE, MIB - 512, 1024, bytes(1024))),
    (errno.ENOSPC, request(ZEROES, MIB - 512, 1024)),
    (errno.ENOSPC, request(ZEROES, 0, 0xFFFFFE00)),
    (errno.EINVAL, request(READ, MIB - 512, 1024)),
    (errno.EINVAL, request(READ, 1 << 63, 512)),
    (errno.EINVAL, request(READ, (1 << 64) - 512, 512)),
    (errno.EINVAL, request(TRIM, (1 << 64) - 512, 1024)),
    (errno.EINVAL, request(TRIM, MIB, 512)),
    (errno.EINVAL, request(READ, 0, 0)),
    (errno.EINVAL, request(WRITE, 0, 0)),
    (errno.EINVAL, request(READ, 1, 512)),
    (errno.EINVAL, request(READ, 0, 511)),
    (errno.EINVAL, request(WRITE, 256, 512, bytes(512))),
    (errno.EINVAL, request(READ, 0, nbd.MOST_BYTES + 512)),
    (errno.EINVAL, request(WRITE, 0, nbd.MOST_BYTES + 512, bytes(nbd.MOST_BYTES + 512))),
    (errno.EINVAL, request(FLUSH, 512, 0)),
    (errno.EINVAL, request(FLUSH, 0, 512)),
    *((errno.EINVAL, request(command, 0, 512)) for command in (CACHE, STATUS, RESIZE, 9, 0xFFFF)),
    (errno.EINVAL, request(READ, 0, 512, flags=DF)),
    (errno.EINVAL, request(WRITE, 0, 512, bytes(512), flags=NO_HOLE)),
    (errno.EINVAL, request(ZEROES, 0, 512, flags=FAST_ZERO)),
    (errno.EINVAL, request(TRIM, 0, 512, flags=REQ_ONE)),
    (errno.EINVAL, request(READ, 0, 512, flags=0x8000)),
]


@pytest.mark.parametrize(("error", "asked"), REFUSED)
def test_a_request_that_is_wrong_is_answered_by_the_error_of_the_protocol(error: int, asked: bytes) -> None:
    right = request(WRITE, MIB - 512, 512, b"x" * 512, flags=FUA, cookie=8)
    answered, taken = events(talking(), asked + right)
    assert answered == SendBytes(nbd.reply(7, error)) and isinstance(taken, NbdRequest)
    assert (taken.cookie, taken.request.offset, taken.request.data, taken.request.fua) == (
        8,
        MIB - 512,
        b"x" * 512,
        True,
    )


@pytest.mark.parametrize(
    "asked",
    [
        request(READ, MIB - 512, 512),
        request(READ, 0, 512, flags=FUA),
        request(FLUSH),
        request(TRIM, 0, MIB, flags=FUA),
        request(ZEROES, 0, MIB, flags=FUA | NO_HOLE),
    ],
)
def test_a_request_that_is_right_is_taken(asked: bytes) -> None:
    assert [type(event) for event in events(talking(), asked)] == [NbdRequest]


def test_a_disk_that_may_be_read_only_is_not_written_to() -> None:
    asked = [request(WRITE, 0, 512, bytes(512)), request(TRIM, 0, 512), request(ZEROES, 0, 512)]
    assert events(talking(read_only=True), b"".join(asked)) == [SendBytes(nbd.reply(7, errno.EPERM))] * 3


def test_a_request_is_read_however_it_is_cut() -> None:
    protocol, found = talking(), []
    for byte in request(WRITE, 512, 512, bytes(range(256)) * 2) + request(READ, 0, 512) + request(DISCONNECT):
        found += events(protocol, bytes([byte]))
    assert [event.request.operation for event in found if isinstance(event, NbdRequest)] == ["write", "read"] and found[
        -1
    ] == ConnectionEnded()


def test_what_a_refused_write_carries_is_not_kept() -> None:
    protocol = talking()
    protocol.receive(request(WRITE, 0, 0xFFFFFFFF))
    for _ in range(64):
        protocol.receive(bytes(MIB))
        assert protocol.next_event() is None
        assert len(protocol._received) == 0


@pytest.mark.parametrize(
    "garbage", [bytes(28), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", request(READ)[:3] + b"\0" + request(READ)[4:]]
)
def test_garbage_ends_the_connection_with_a_reason(garbage: bytes) -> None:
    (ended,) = events(talking(), garbage)
    assert isinstance(ended, ConnectionEnded) and ended.why.startswith("expected a request, got the number 0x")


# Negotiation --------------------------------------------------------------------------------------------------------------------------

FLAGS = struct.pack(">I", 3)


def kinds(found: list[nbd.Event]) -> list[int]:
    """The types of the replies to options."""
    return [struct.unpack_from(">I", event.data, 12)[0] for event in found if isinstance(event, SendBytes)]


def test_an_export_is_described_before_it_is_used() -> None:
    protocol = Protocol(size_bytes=MIB, read_only=True, block_bytes=512)
    found = events(protocol, FLAGS + option(INFO, named(b"any", 3)) + option(GO, named()))
    assert kinds(found) == [3, 3, ACK, 3, 3, ACK] and protocol.transmitting
    described, sizes = (event.data[20:] for event in found[:2] if isinstance(event, SendBytes))
    assert struct.unpack(">HQH", described)[:2] == (0, MIB) and struct.unpack(">HQH", described)[2] & 2
    assert struct.unpack(">HIII", sizes) == (3, 512, 4096, 32 * MIB)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        *((option(kind), UNSUPPORTED) for kind in (LIST, PEEK, STARTTLS, STRUCTURED, 0, 0xFFFFFFFF)),
        (option(GO), INVALID),
        (option(GO, bytes(5)), INVALID),
        (option(GO, named() + b"\0"), INVALID),
        (option(GO, struct.pack(">IH", 1, 0)), INVALID),
        (option(INFO, struct.pack(">IH", 0xFFFFFFFF, 0)), INVALID),
        (option(INFO, struct.pack(">IH", 0, 0xFFFF)), INVALID),
        (option(INFO, named(bytes(5000))), INVALID),
        (option(GO, bytes(9000)), TOO_BIG),
    ],
)
def test_an_option_that_is_wrong_is_refused_and_another_may_follow(asked: bytes, kind: int) -> None:
    protocol = Protocol(size_bytes=MIB)
    assert kinds(events(protocol, FLAGS + asked)) == [kind] and not protocol.transmitting
    assert kinds(events(protocol, option(GO, named()))) == [3, 3, ACK] and protocol.transmitting


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (struct.pack(">I", 0xFFFFFFFF), "expected client flags"),
        (struct.pack(">I", 2) + option(GO, named()), "does not know more, got option 7"),
        (FLAGS + bytes(16), "expected an option"),
        (FLAGS + option(EXPORT_NAME, b"", 4097), "expected a name of at most 4096 bytes"),
        (FLAGS + option(LIST) * 65, "expected at most 64 options"),
        (FLAGS + option(LIST, b"", 0xFFFFFFFF), "expected options of at most 1048576 bytes"),
        (FLAGS + option(LIST, bytes(9000)) * 60 + option(LIST, b"", MIB), "expected options of at most 1048576 bytes"),
    ],
)
def test_negotiation_without_end_is_ended(said: bytes, why: str) -> None:
    last = events(Protocol(size_bytes=MIB), said)[-1]
    assert isinstance(last, ConnectionEnded) and why in last.why


def test_a_client_that_gives_up_is_let_go() -> None:
    found = events(Protocol(size_bytes=MIB), FLAGS + option(ABORT))
    assert kinds(found) == [ACK] and found[-1] == ConnectionEnded()


def test_a_client_of_old_gets_its_zeros() -> None:
    (described,) = events(Protocol(size_bytes=MIB), struct.pack(">I", 0) + option(EXPORT_NAME, b"x"))
    assert isinstance(described, SendBytes) and len(described.data) == 134


# Anything ----------------------------------------------------------------------------------------------------------------------------

pieces = st.one_of(
    st.binary(max_size=40),
    st.builds(
        request,
        st.integers(0, 9),
        st.one_of(st.integers(0, MIB), st.integers(0, (1 << 64) - 1)),
        st.one_of(st.integers(0, 4096), st.integers(0, (1 << 32) - 1)),
        st.binary(max_size=1024),
        flags=st.sampled_from([0, FUA, NO_HOLE, 0xFFFF]),
    ),
    st.builds(option, st.integers(0, 12), st.one_of(st.binary(max_size=64), st.builds(named, st.binary(max_size=8)))),
)


@given(said=st.lists(pieces, max_size=12), greeted=st.booleans(), cut=st.integers(1, 64))
def test_whatever_a_client_says_is_answered_or_ends_and_reaches_no_byte_beyond_the_disk(
    said: list[bytes], greeted: bool, cut: int
) -> None:
    protocol = talking() if greeted else Protocol(size_bytes=MIB, block_bytes=512)
    device = Device(Bounded(MIB), log=io.StringIO())
    data = b"".join(said)
    for at in range(0, len(data), cut):
        for event in events(protocol, data[at : at + cut]):
            if isinstance(event, NbdRequest):
                device.submit(event.request, lambda error, data: None)
        assert len(protocol._received) <= 28 + 8192 + nbd.MOST_BYTES


class Bounded(DiscardingBacking):
    """A store that its caller keeps within."""

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < offset + length <= self.size
        return super().read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset < offset + len(data) <= self.size

    def trim(self, offset: int, length: int) -> None:
        assert 0 <= offset < offset + length <= self.size


# The process --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, block_bytes=512, confined=True)
    process.client.settimeout(30)
    yield process
    process.child.kill()
    process.end()


def received(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = client.recv(length - len(data))
        assert more, "it has ended the connection"
        data += more
    return data


def greet(client: socket.socket) -> None:
    assert received(client, 18) == nbd.GREETING
    client.sendall(HELLO)
    received(client, 10)


def replied(client: socket.socket) -> tuple[int, int]:
    """The error and the cookie of the next reply; nothing is read with it."""
    _, error, cookie = struct.unpack(">IIQ", received(client, 16))
    return error, cookie


def peak_kib(pid: int) -> int:
    return next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def test_a_disk_is_not_written_beyond_its_end_and_answers_on(process: Process, tmp_path: Path) -> None:
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
def test_requests_that_wait_cost_bounded_memory(process: Process, command: int, each: int) -> None:
    """The client sends for ever what is never answered, and is no longer read from."""
    greet(process.client)
    process.tell(verb="hold", seconds=3600)
    process.client.setblocking(False)
    asked, sent_bytes = request(command, 0, each, bytes(each if command == WRITE else 0)), 0
    rest = memoryview(asked)
    while sent_bytes < 256 * MIB:
        try:
            sent = process.client.send(rest)
        except BlockingIOError:
            # Its memory is what it is when it has looked at all that it takes.
            if process.tell(verb="latency") and not _writable(process.client):
                break
            continue
        sent_bytes += sent
        rest = rest[sent:] or memoryview(asked)
    assert sent_bytes < 128 * MIB
    assert peak_kib(process.child.pid) < 200 * KIB


def _writable(client: socket.socket) -> bool:
    return bool(select.select([], [client], [], 1)[1])


def test_answers_that_nobody_reads_cost_bounded_memory(process: Process) -> None:
    greet(process.client)
    process.client.sendall(request(READ, 0, MIB) * 256)
    for _ in range(3):
        process.tell(verb="latency")
    assert peak_kib(process.child.pid) < 60 * KIB
    for _ in range(256):
        assert replied(process.client) == (0, 7)
        assert received(process.client, MIB) == bytes(MIB)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", HELLO + bytes(28)])
def test_a_client_that_is_none_ends_the_process_which_says_why(process: Process, said: bytes) -> None:
    process.client.sendall(said)
    assert process.said()["ends"].startswith("its client: expected ")
    assert process.child.wait(20) == 1
    while process.client.recv(4096):
        pass  # its end is seen: requests fail, and do not hang


@pytest.mark.parametrize("half", [b"", HELLO[:7], HELLO + request(WRITE, 0, 512)])
def test_a_client_that_goes_in_the_middle_leaves_a_process_that_does_what_it_is_told(
    process: Process, half: bytes, tmp_path: Path
) -> None:
    process.client.sendall(half)
    process.client.close()
    assert process.tell(verb="hurry") == {"number": None}
    assert (tmp_path / "disk").read_bytes() == bytes(MIB)


def test_negotiation_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_NEGOTIATION_S", 0.0)
    own, other = socket.socketpair()
    with own, other:
        device = Device(DiscardingBacking(MIB), log=io.StringIO())
        client = server.Client(own, Protocol(size_bytes=MIB), device)
        client.step()  # nobody is there yet
        other.sendall(HELLO[:7])
        client.receive()
        assert client.deadline is not None
        with pytest.raises(server.BadClient, match="expected an end of its negotiation"):
            while True:
                client.step()


# It is held --------------------------------------------------------------------------------------------------------------------------

_TRIES = """
import ctypes, json, os, socket, subprocess, sys
from testbed.qemu.nbd_server import confinement; from testbed.qemu.nbd_server import server as serving
from testbed.qemu.nbd_server.settings import Settings

def tried(name, call):
    try:
        call()
    except BaseException as error:
        return f"{name}: {type(error).__name__}"
    return f"{name}: done"

settings = Settings(**json.loads(sys.argv[1]))
confinement.confine_process(settings)
said = [
    tried("read a file", lambda: os.open("/etc/passwd", os.O_RDONLY)),
    tried("make a file", lambda: os.open("/tmp/testbed-owned", os.O_CREAT | os.O_WRONLY)),
    tried("list a folder", lambda: os.listdir("/")),
    tried("make a socket", lambda: socket.socket(socket.AF_INET)),
    tried("make a socket of this machine", lambda: socket.socket(socket.AF_UNIX)),
    tried("start a program", lambda: os.execv("/bin/true", ["true"])),
    tried("make a process", os.fork),
    tried("signal its parent", lambda: os.kill(os.getppid(), 0)),
    tried("be root", lambda: os.setuid(0)),
    tried("look at a file", lambda: os.stat("/etc/passwd")),
    tried("change a mode", lambda: os.fchmod(settings.file, 0o777)),
]
os.write(1, "\\n".join(said).encode())
os._exit(0)
"""


@pytest.mark.parametrize(
    "account", [None, pytest.param(65534, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"))]
)
def test_an_export_opens_makes_starts_and_signals_nothing(account: int | None, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    with (tmp_path / "disk").open("rb") as file:
        settings = Settings(
            file=file.fileno(), parent=os.getpid(), uid=account, gid=account, mount_ns=may_mount(), confined=True
        )
        found = subprocess.run(
            [sys.executable, "-c", _TRIES, json.dumps(asdict(settings))],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            pass_fds=[file.fileno()],
        )
    tries = dict(line.split(": ") for line in found.stdout.splitlines())
    assert len(tries) == 11 and set(tries.values()) <= {"PermissionError", "ProcessLookupError"}, found


async def started(tmp_path: Path, on_end: Callable[[str], None] = pytest.fail, of: Host | None = None) -> Export:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    disk.chmod(0o600)
    return await Export.start(
        "data", Settings(block_bytes=512), file=disk, log=tmp_path / "log", host=of, on_end=on_end
    )


def status(pid: int) -> dict[str, str]:
    return {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    }


async def test_an_export_is_held_as_qemu_is(tmp_path: Path) -> None:
    account = Account(uid=65534, gid=65534) if os.geteuid() == 0 else None
    held = JailSupport(confined=True, mount_ns=may_mount())
    export = await started(tmp_path, of=replace(host(), account=account, jail=held))
    try:
        found = status(export._child.pid)
        assert found["NoNewPrivs"] == "1" and found["Seccomp"] == "2"
        assert {int(found[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
        if account is not None:
            assert found["Uid"].split() == ["65534"] * 4 == found["Gid"].split() and found["Groups"] == ""
        greet(export.client)
        export.client.sendall(request(WRITE, 0, 512, b"x" * 512))
        assert replied(export.client) == (0, 7) and (tmp_path / "disk").read_bytes()[:512] == b"x" * 512
    finally:
        await export.close()


async def test_what_cannot_be_held_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = "def fail():\n    raise OSError('no libseccomp')\nconfinement._prepare_filter = fail\n"
    program = nbd_export._PROGRAM.replace(
        "; main()", f"\nfrom testbed.qemu.nbd_server import confinement\n{failing}main()"
    )
    monkeypatch.setattr(nbd_export, "_PROGRAM", program)
    with pytest.raises(HostError, match="disk data: its export ended: OSError: no libseccomp"):
        await started(tmp_path, of=replace(host(), account=None, jail=JailSupport(confined=True)))


def test_an_export_whose_owner_has_ended_already_does_not_start() -> None:
    own, other = socket.socketpair()
    with own, other:
        words = [
            sys.executable,
            "-m",
            "testbed.qemu.nbd_server",
            json.dumps(asdict(Settings(wire=own.fileno(), room_bytes=MIB, parent=1))),
        ]
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            pass_fds=[own.fileno()],
            timeout=60,
        )
    assert done.returncode == 1 and "whoever started it has ended" in json.loads(done.stdout)["ends"]


# Its end is heard --------------------------------------------------------------------------------------------------------------------


async def test_an_export_that_ends_is_heard_by_its_owner_and_its_client(tmp_path: Path) -> None:
    ends: asyncio.Queue[str] = asyncio.Queue()
    export = await started(tmp_path, ends.put_nowait)
    os.kill(export._child.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert "disk data: its export ended: it was killed, or failed" in await ends.get()
    export.client.settimeout(20)
    while export.client.recv(4096):
        pass
    with pytest.raises(HostError, match="its export ended: signal 9"):
        await export.hold(1)
    await export.close()


async def test_a_mistake_of_the_export_is_heard_and_its_traceback_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it may open no file any longer, as a traceback would like to."""
    broken = "def broken(self):\n    raise OverflowError('too large')\ndevice.Device.due = broken\n"
    program = nbd_export._PROGRAM.replace("; main()", f"\nfrom testbed.qemu.nbd_server import device\n{broken}main()")
    monkeypatch.setattr(nbd_export, "_PROGRAM", program)
    ends: asyncio.Queue[str] = asyncio.Queue()
    export = await started(tmp_path, ends.put_nowait, replace(host(), account=None, jail=JailSupport(confined=True)))
    async with asyncio.timeout(20):
        assert "disk data: its export ended: OverflowError: too large" in await ends.get()
    await export.close()
    assert "in broken" in (tmp_path / "log").read_text()


async def test_an_export_whose_client_is_none_says_so_to_its_owner(tmp_path: Path) -> None:
    ends: asyncio.Queue[str] = asyncio.Queue()
    export = await started(tmp_path, ends.put_nowait)
    export.client.sendall(HELLO + b"\x1b[31m" + bytes(28))
    async with asyncio.timeout(20):
        why = await ends.get()
    assert "its export ended: its client: expected a request" in why and "\x1b" not in why
    await export.close()


async def test_an_export_that_is_closed_is_nobodys_trouble(tmp_path: Path) -> None:
    export = await started(tmp_path)
    await export.close()
    assert export._child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("said", ["'nonsense'", "'[]'", "'[' * 50_000", "'1'", "'x' * (1 << 20)"])
async def test_an_export_that_was_taken_over_is_not_believed(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"import sys, time; sys.stdout.write({said} + chr(10)); sys.stdout.flush(); time.sleep(1000)"
    monkeypatch.setattr(nbd_export, "_PROGRAM", program)
    with pytest.raises(HostError, match="its export ended: it says what it never says"):
        await started(tmp_path)


# Another client ----------------------------------------------------------------------------------------------------------------------

_LIBNBD = """
import nbd
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_socket({client})
assert h.get_size() == 1 << 20 and h.get_block_size(nbd.SIZE_MINIMUM) == 512 and h.can_fua() and h.can_trim() and not h.is_read_only()
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


# Debian's binding is one of Debian's own Python.
@pytest.mark.skipif(
    not Path("/usr/lib/python3/dist-packages/nbd.py").exists(),
    reason="python3-libnbd is not here; `./tb test` installs it",
)
def test_libnbds_client_gets_what_the_protocol_says(process: Process) -> None:
    words = ["/usr/bin/python3", "-c", _LIBNBD.format(client=process.client.fileno())]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60, pass_fds=(process.client.fileno(),)
    )
    assert done.stdout == "well\n", done.stderr


# What the owner asks for --------------------------------------------------------------------------------------------------------------


def test_blocks_are_those_of_the_disk_where_its_file_has_them() -> None:
    def blocks(disk: Nvme | VirtioBlk, name: str = "d") -> int:
        stores = dict(zip(("d", "e"), blockdev.plan_storage("d", disk, Path("/s")), strict=False))
        return nbd_export.export_settings(name, disk, stores.get(name)).block_bytes

    assert blocks(Nvme.model_validate({"type": "nvme", "size": "1G", "logical-block-size": 4096})) == 4096
    assert blocks(VirtioBlk.model_validate({"type": "virtio-blk", "size": "1G"})) == 512
    assert blocks(VirtioBlk.model_validate({"type": "virtio-blk", "size": "1G", "format": "qcow2"})) == 1
    assert blocks(VirtioBlk.model_validate({"type": "virtio-blk", "size": "1G", "format": "null-co"})) == 512
