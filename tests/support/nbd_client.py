"""An NBD client that can break the protocol, for tests."""

from __future__ import annotations

import errno
import socket
import struct

from testbed.qemu.nbd_server import protocol as nbd
from testbed.qemu.nbd_server.protocol import ConnectionEnded, Protocol

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
    """Pack the data of the options INFO and GO."""
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def request(
    command: int, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0, cookie: int = 7
) -> bytes:
    return struct.pack(">IHHQQI", REQUEST, flags, command, cookie, offset, length) + data


def events(protocol: Protocol, data: bytes) -> list[nbd.Event]:
    """Return the events in bytes of a client, until more bytes are needed or the connection ends."""
    protocol.receive(data)
    found: list[nbd.Event] = []
    while (event := protocol.next_event()) is not None:
        found.append(event)
        if isinstance(event, ConnectionEnded):
            break
    return found


def talking(**said: int) -> Protocol:
    """Return a connection after its negotiation, to a disk of 1 MiB in blocks of 512 bytes."""
    protocol = Protocol(**{"size_bytes": MIB, "block_bytes": 512, **said})  # type: ignore[arg-type]  # a test's own words
    events(protocol, HELLO)
    assert protocol.transmitting
    return protocol


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
    """Receive the next reply, of a request that reads nothing; returns its error and cookie."""
    _, error, cookie = struct.unpack(">IIQ", received(client, 16))
    return error, cookie


# Invalid requests, each with the error that answers it.
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
