"""The parser answers anything that a client sends with the protocol's errors, and stays within the disk."""

from __future__ import annotations

import errno
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.qemu.nbd_server import protocol as nbd
from testbed.qemu.nbd_server.backing import DiscardingBacking
from testbed.qemu.nbd_server.device import Device
from testbed.qemu.nbd_server.protocol import ConnectionEnded, NbdRequest, Protocol, SendBytes
from tests.support.nbd_client import (
    ABORT,
    ACK,
    DISCONNECT,
    EXPORT_NAME,
    FLUSH,
    FUA,
    GO,
    INFO,
    INVALID,
    LIST,
    MIB,
    NO_HOLE,
    PEEK,
    READ,
    REFUSED,
    STARTTLS,
    STRUCTURED,
    TOO_BIG,
    TRIM,
    UNSUPPORTED,
    WRITE,
    ZEROES,
    events,
    named,
    option,
    request,
    talking,
)


@pytest.mark.parametrize(("error", "asked"), REFUSED)
def test_an_invalid_request_gets_the_error_of_the_protocol(error: int, asked: bytes) -> None:
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
def test_a_valid_request_is_accepted(asked: bytes) -> None:
    assert [type(event) for event in events(talking(), asked)] == [NbdRequest]


def test_a_read_only_disk_is_not_written_to() -> None:
    asked = [request(WRITE, 0, 512, bytes(512)), request(TRIM, 0, 512), request(ZEROES, 0, 512)]
    assert events(talking(read_only=True), b"".join(asked)) == [SendBytes(nbd.reply(7, errno.EPERM))] * 3


def test_a_request_may_arrive_in_any_pieces() -> None:
    protocol, found = talking(), []
    for byte in request(WRITE, 512, 512, bytes(range(256)) * 2) + request(READ, 0, 512) + request(DISCONNECT):
        found += events(protocol, bytes([byte]))
    assert [event.request.operation for event in found if isinstance(event, NbdRequest)] == ["write", "read"] and found[
        -1
    ] == ConnectionEnded()


def test_the_data_of_a_refused_write_is_dropped() -> None:
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


FLAGS = struct.pack(">I", 3)


def kinds(found: list[nbd.Event]) -> list[int]:
    """Return the types of the replies to options."""
    return [struct.unpack_from(">I", event.data, 12)[0] for event in found if isinstance(event, SendBytes)]


def test_the_negotiation_describes_the_export() -> None:
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
def test_a_wrong_option_is_refused_and_another_may_follow(asked: bytes, kind: int) -> None:
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
def test_an_endless_negotiation_is_ended(said: bytes, why: str) -> None:
    last = events(Protocol(size_bytes=MIB), said)[-1]
    assert isinstance(last, ConnectionEnded) and why in last.why


def test_a_client_may_abort_the_negotiation() -> None:
    found = events(Protocol(size_bytes=MIB), FLAGS + option(ABORT))
    assert kinds(found) == [ACK] and found[-1] == ConnectionEnded()


def test_an_old_client_gets_the_padding_of_zeros() -> None:
    (described,) = events(Protocol(size_bytes=MIB), struct.pack(">I", 0) + option(EXPORT_NAME, b"x"))
    assert isinstance(described, SendBytes) and len(described.data) == 134


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
def test_any_input_is_answered_or_ends_the_connection_and_stays_within_the_disk(
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
    """A backing that checks that requests stay within its size."""

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < offset + length <= self.size
        return super().read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset < offset + len(data) <= self.size

    def trim(self, offset: int, length: int) -> None:
        assert 0 <= offset < offset + length <= self.size
