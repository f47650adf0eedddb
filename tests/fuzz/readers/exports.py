"""NBD that QEMU, or a guest that has taken it over, sends to the process that emulates a disk."""

from __future__ import annotations

import io
import random
import struct

from testbed.qemu.nbd_server.device import Device
from testbed.qemu.nbd_server.protocol import ConnectionEnded, NbdRequest, Protocol, SendBytes

_DISK_BYTES = 1 << 16


class _Memory:
    """A backing that checks that each access is within it."""

    def __init__(self) -> None:
        self.size = _DISK_BYTES

    def read(self, offset: int, length: int) -> bytes:
        self._within(offset, length)
        return bytes(length)

    def write(self, offset: int, data: bytes) -> None:
        self._within(offset, len(data))

    def trim(self, offset: int, length: int) -> None:
        self._within(offset, length)

    def flush(self) -> None:
        pass

    def _within(self, offset: int, length: int) -> None:
        assert offset >= 0 and length >= 0 and offset + length <= self.size, (
            f"beyond the disk: {length} bytes at {offset}"
        )


def nbd(data: bytes) -> None:
    """Handle a client's bytes, in two pieces: negotiation, and requests, on a writable and on a read-only disk."""
    for read_only, block_bytes in ((False, 1), (True, 512)):
        device = Device(_Memory(), log=io.StringIO())
        protocol = Protocol(size_bytes=_DISK_BYTES, read_only=read_only, block_bytes=block_bytes)
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            protocol.receive(part)
            while (event := protocol.next_event()) is not None:
                match event:
                    case NbdRequest(request=request):
                        assert request.offset % block_bytes == request.length % block_bytes == 0
                        device.submit(request, lambda error, found: None)
                        while device.work():
                            pass
                    case ConnectionEnded():
                        return
                    case SendBytes():
                        pass


_OPTION, _REQUEST = b"IHAVEOPT", struct.pack(">I", 0x25609513)
# Fields of an option: number and length; of a request: flags, command, cookie, offset, length.
_PLACES = {_OPTION: ((8, 4), (12, 4)), _REQUEST: ((4, 2), (6, 2), (8, 8), (16, 8), (24, 4))}
_VALUES = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    511,
    512,
    513,
    _DISK_BYTES - 1,
    _DISK_BYTES,
    _DISK_BYTES + 1,
    (32 << 20) + 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 63,
)


def nbd_field(data: bytes, rng: random.Random) -> bytes:
    """Change a field of an option or a request, or repeat a whole one."""
    magic = rng.choice((_OPTION, _REQUEST))
    starts = [at for at in range(len(data)) if data.startswith(magic, at)]
    if not starts:
        return data + magic
    at = rng.choice(starts)
    if rng.random() < 0.2:
        return data[:at] + data[at : at + 28] + data[at:]
    begin, size = rng.choice(_PLACES[magic])
    value = rng.choice(_VALUES) % (1 << 8 * size)
    return data[: at + begin] + value.to_bytes(size, "big") + data[at + begin + size :]
