"""The NBD protocol, as far as QEMU's client speaks it: fixed newstyle, simple replies (the NBD project's doc/proto.md)."""

from __future__ import annotations

import errno
import socket
import struct
import threading

from testbed.export.device import Device, Request
from testbed.hardware.faults import DISCARD, FLUSH, READ, WRITE

_MAGIC, _OPTION, _OPTION_REPLY, _REQUEST, _REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9, 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _REP_INFO, _UNSUPPORTED = 1, 3, 0x80000001
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_FUA, _SEND_TRIM, _SEND_WRITE_ZEROES = 1, 2, 4, 8, 32, 64
_FUA = 1
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_OPERATIONS = {_READ: READ, _WRITE: WRITE, _FLUSH: FLUSH, _TRIM: DISCARD, _WRITE_ZEROES: WRITE}
_MOST_BYTES = 32 << 20
# What the protocol can say of an error; everything else is an input/output error.
_ERRORS = {errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC}


class Ended(Exception):
    """The client is gone, or says what no client says."""


class Connection:
    """One client."""

    def __init__(self, wire: socket.socket, device: Device, *, read_only: bool) -> None:
        self._wire, self._device, self._read_only = wire, device, read_only
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Until the client is gone."""
        try:
            self._shake_hands()
            while self._take():
                pass
        except (Ended, OSError):
            pass
        finally:
            self._wire.close()

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        view, got = memoryview(data), 0
        while got < length:
            more = self._wire.recv_into(view[got:])
            if not more:
                raise Ended
            got += more
        return bytes(data)

    def _shake_hands(self) -> None:
        self._wire.sendall(struct.pack(">QQH", _MAGIC, _OPTION, _FIXED_NEWSTYLE | _NO_ZEROES))
        (flags,) = struct.unpack(">I", self._receive(4))
        while True:
            magic, option, length = struct.unpack(">QII", self._receive(16))
            if magic != _OPTION or length > 65536:
                raise Ended
            self._receive(length)
            if option == _EXPORT_NAME:
                self._wire.sendall(self._described() + (b"" if flags & _NO_ZEROES else bytes(124)))
                return
            if option in (_GO, _INFO):
                # There is one export, whatever the client calls it.
                self._answer(option, _REP_INFO, struct.pack(">H", _INFO_EXPORT) + self._described())
                self._answer(option, _REP_INFO, struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, 4096, _MOST_BYTES))
                self._answer(option, _ACK)
                if option == _GO:
                    return
            elif option == _ABORT:
                self._answer(option, _ACK)
                raise Ended
            else:
                self._answer(option, _UNSUPPORTED)

    def _described(self) -> bytes:
        flags = _HAS_FLAGS | _SEND_FLUSH | _SEND_FUA | _SEND_TRIM | _SEND_WRITE_ZEROES | (_READ_ONLY if self._read_only else 0)
        return struct.pack(">QH", self._device.size, flags)

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self._wire.sendall(struct.pack(">QIII", _OPTION_REPLY, option, kind, len(data)) + data)

    def _take(self) -> bool:
        magic, flags, command, handle, offset, length = struct.unpack(">IHHQQI", self._receive(28))
        if magic != _REQUEST:
            raise Ended
        if command == _DISCONNECT:
            return False
        operation = _OPERATIONS.get(command)
        if command in (_READ, _WRITE) and length > _MOST_BYTES:
            raise Ended  # it was told how much is the most
        data = self._receive(length) if command == _WRITE else None
        if operation is None:
            self._reply(handle, errno.EINVAL, b"")
            return True
        if self._read_only and operation in (WRITE, DISCARD):
            self._reply(handle, errno.EPERM, b"")
            return True
        request = Request(operation=operation, offset=offset, length=length, data=data, fua=bool(flags & _FUA))
        self._device.submit(request, lambda error, found: self._reply(handle, error, found))
        return True

    def _reply(self, handle: int, error: int, data: bytes) -> None:
        said = error if not error or error in _ERRORS else errno.EIO
        try:
            with self._sending:
                self._wire.sendall(struct.pack(">IIQ", _REPLY, said, handle) + data)
        except OSError:
            pass  # the client is gone; its reader notices
