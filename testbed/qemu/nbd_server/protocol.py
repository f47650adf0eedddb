"""Parses what an NBD client sends, and packs the replies. Does no I/O, and accepts any bytes.

Fixed newstyle negotiation and simple replies, as QEMU's client uses them. Every request is checked before it is passed
on; all numbers, and which error answers which mistake, are from the NBD project's doc/proto.md.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Generator
from dataclasses import dataclass

from testbed.hardware.faults import DISCARD, FLUSH, READ, WRITE
from testbed.qemu.nbd_server.device import Request

# The largest payload of a request: what the protocol lets a client assume.
MOST_BYTES = 32 << 20

_MAGIC, _OPTION, _OPTION_REPLY, _REQUEST, _REPLY = (
    0x4E42444D41474943,
    0x49484156454F5054,
    0x3E889045565A9,
    0x25609513,
    0x67446698,
)
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _REP_INFO, _UNSUPPORTED, _INVALID, _TOO_BIG = 1, 3, (1 << 31) + 1, (1 << 31) + 3, (1 << 31) + 9
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_FUA, _SEND_TRIM, _SEND_WRITE_ZEROES = 1, 2, 4, 8, 32, 64
_FUA, _NO_HOLE = 1, 2
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_OPERATIONS = {_READ: READ, _WRITE: WRITE, _FLUSH: FLUSH, _TRIM: DISCARD, _WRITE_ZEROES: WRITE}
# Limits of the negotiation: strings of the protocol have at most 4096 bytes, and a client needs few options.
_MOST_NAME_BYTES, _MOST_OPTION_BYTES, _MOST_OPTIONS, _MOST_NEGOTIATION_BYTES = 4096, 8192, 64, 1 << 20
_PREFERRED_BYTES = 4096
# The errors that the protocol has numbers for; every other error is sent as EIO.
_ERRORS = {
    *(
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ENOTSUP,
        errno.ESHUTDOWN,
    ),
}

GREETING = struct.pack(">QQH", _MAGIC, _OPTION, _FIXED_NEWSTYLE | _NO_ZEROES)


@dataclass(frozen=True, slots=True)
class SendBytes:
    """Bytes for the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class NbdRequest:
    """A valid request; it is answered with `reply(cookie, ...)`."""

    cookie: int
    request: Request


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """The client has disconnected; or it is dropped, and `why` says how it broke the protocol."""

    why: str = ""


Event = SendBytes | NbdRequest | ConnectionEnded
# Yields events, and None when more bytes are needed.
Steps = Generator[Event | None, None, None]


class _Closed(Exception):
    """The end of the connection; its text is `ConnectionEnded.why`."""


class Protocol:
    """The server's side of one connection, which begins with `GREETING`."""

    def __init__(self, *, size_bytes: int, read_only: bool = False, block_bytes: int = 1) -> None:
        self._size, self._read_only, self._block = size_bytes, read_only, block_bytes
        self._received = bytearray()
        self._steps = self._session()
        self.transmitting = False  # negotiation is over

    def receive(self, data: bytes | memoryview) -> None:
        """Add bytes from the client; they are kept until `next_event` has used them."""
        self._received += data

    def next_event(self) -> Event | None:
        """Return the next event in the bytes so far; None if more are needed."""
        return next(self._steps, ConnectionEnded())

    def _session(self) -> Steps:
        try:
            yield from self._negotiate()
            self.transmitting = True
            while True:
                yield from self._take_request()
        except _Closed as closed:
            self._received.clear()
            yield ConnectionEnded(str(closed))

    def _take(self, length: int) -> Generator[None, None, bytes]:
        while len(self._received) < length:
            yield None
        with memoryview(self._received) as view:
            data = bytes(view[:length])
        del self._received[:length]
        return data

    def _skip(self, length: int) -> Generator[None, None, None]:
        """Drop that many bytes without keeping them."""
        while length:
            step = min(length, len(self._received))
            del self._received[:step]
            length -= step
            if length:
                yield None

    # Negotiation
    # ------------------------------------------------------------------------------------------------------------------

    def _negotiate(self) -> Steps:
        (flags,) = struct.unpack(">I", (yield from self._take(4)))
        if flags & ~(_FIXED_NEWSTYLE | _NO_ZEROES):
            raise _Closed(f"expected client flags of {_FIXED_NEWSTYLE | _NO_ZEROES:#x}, got {flags:#x}")
        room_bytes = _MOST_NEGOTIATION_BYTES
        for _ in range(_MOST_OPTIONS):
            magic, option, length = struct.unpack(">QII", (yield from self._take(16)))
            if magic != _OPTION:
                raise _Closed(f"expected an option, got the number {magic:#x}")
            if option != _EXPORT_NAME and not flags & _FIXED_NEWSTYLE:
                raise _Closed(
                    f"expected the name of an export of a client that does not know more, got option {option}"
                )
            if option == _EXPORT_NAME and length > _MOST_NAME_BYTES:  # the protocol has no answer to this option
                raise _Closed(f"expected a name of at most {_MOST_NAME_BYTES} bytes, got {length}")
            room_bytes -= length
            if room_bytes < 0:
                raise _Closed(f"expected options of at most {_MOST_NEGOTIATION_BYTES} bytes, got more")
            if length > _MOST_OPTION_BYTES:
                yield from self._skip(length)
                yield _answer(option, _TOO_BIG)
                continue
            data = yield from self._take(length)
            if option == _EXPORT_NAME:
                yield SendBytes(self._export_info() + (b"" if flags & _NO_ZEROES else bytes(124)))
                return
            yield from self._answer(option, data)
            if option == _GO and _names_export(data):
                return
        raise _Closed(f"expected at most {_MOST_OPTIONS} options, got more")

    def _answer(self, option: int, data: bytes) -> Steps:
        if option == _ABORT:
            yield _answer(option, _ACK)
            raise _Closed
        if option not in (_GO, _INFO):
            yield _answer(option, _UNSUPPORTED)
        elif not _names_export(data):
            yield _answer(option, _INVALID)
        else:
            # There is one export, whatever name the client uses.
            yield _answer(option, _REP_INFO, struct.pack(">H", _INFO_EXPORT) + self._export_info())
            sizes = (self._block, max(self._block, _PREFERRED_BYTES), MOST_BYTES)
            yield _answer(option, _REP_INFO, struct.pack(">HIII", _INFO_BLOCK_SIZE, *sizes))
            yield _answer(option, _ACK)

    def _export_info(self) -> bytes:
        flags = (
            _HAS_FLAGS
            | _SEND_FLUSH
            | _SEND_FUA
            | _SEND_TRIM
            | _SEND_WRITE_ZEROES
            | (_READ_ONLY if self._read_only else 0)
        )
        return struct.pack(">QH", self._size, flags)

    # Transmission
    # -----------------------------------------------------------------------------------------------------------------

    def _take_request(self) -> Steps:
        magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", (yield from self._take(28)))
        if magic != _REQUEST:
            raise _Closed(f"expected a request, got the number {magic:#x}")
        if command == _DISCONNECT:
            raise _Closed
        refused = self._refused(flags, command, offset, length)
        if refused:
            yield from self._skip(length if command == _WRITE else 0)
            yield SendBytes(reply(cookie, refused))
            return
        data = (yield from self._take(length)) if command == _WRITE else None
        yield NbdRequest(
            cookie,
            Request(operation=_OPERATIONS[command], offset=offset, length=length, data=data, fua=bool(flags & _FUA)),
        )

    def _refused(self, flags: int, command: int, offset: int, length: int) -> int:
        """Return the errno that answers an invalid request, 0 for a valid one."""
        operation = _OPERATIONS.get(command)
        if operation is None or flags & ~(_FUA | (_NO_HOLE if command == _WRITE_ZEROES else 0)):
            return errno.EINVAL
        if operation == FLUSH:
            return errno.EINVAL if offset or length else 0
        if self._read_only and operation != READ:
            return errno.EPERM
        if (
            not length
            or offset % self._block
            or length % self._block
            or (command in (_READ, _WRITE) and length > MOST_BYTES)
        ):
            return errno.EINVAL
        if offset + length > self._size:
            return errno.ENOSPC if operation == WRITE else errno.EINVAL
        return 0


def _names_export(data: bytes) -> bool:
    """Tell whether the data of NBD_OPT_INFO or NBD_OPT_GO is valid: a name, and a list of information types, each with
    its length.
    """
    if len(data) < 6:
        return False
    name_bytes = int.from_bytes(data[:4], "big")
    at = 4 + name_bytes
    return (
        name_bytes <= _MOST_NAME_BYTES
        and at + 2 <= len(data)
        and len(data) == at + 2 + 2 * int.from_bytes(data[at : at + 2], "big")
    )


def _answer(option: int, kind: int, data: bytes = b"") -> SendBytes:
    return SendBytes(struct.pack(">QIII", _OPTION_REPLY, option, kind, len(data)) + data)


def reply(cookie: int, error: int) -> bytes:
    """Pack the head of a simple reply; data that was read follows it. `error`: an errno, 0 for success."""
    number = error if not error or error in _ERRORS else errno.EIO
    return struct.pack(">IIQ", _REPLY, number, cookie)
