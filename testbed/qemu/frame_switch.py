"""Switches a guest's frames in a private network: receives those that its QEMU sends, and passes them on to every other
guest's QEMU.

No network of the host is involved: frames are datagrams on unix sockets in a folder that only this user can enter. If a
peer does not run, or does not read fast enough, frames are lost, as on any network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from pathlib import Path

from testbed.host import sockets

# An Ethernet frame, as large as virtio-net's segmentation offload makes one, with its header.
_FRAME_BYTES = 1 << 17
# The limit of the frames queued for one peer, whatever their sizes, and the memory that each takes besides.
_MOST_QUEUED_BYTES, _OVERHEAD_BYTES = 8 << 20, 64
# A QEMU can send faster than frames are delivered: after this many, other tasks of the event loop get their turn.
_FRAMES_AT_ONCE = 64
_RETRY_S = 0.05


class _Queue:
    """Frames for one peer; further frames are dropped while it is full."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()

    def put(self, frame: bytes) -> None:
        size_bytes = len(frame) + _OVERHEAD_BYTES
        if self._bytes + size_bytes <= _MOST_QUEUED_BYTES:
            self._frames.append(frame)
            self._bytes += size_bytes
            self._filled.set()

    async def get(self) -> bytes:
        while not self._frames:
            self._filled.clear()
            await self._filled.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame) + _OVERHEAD_BYTES
        return frame

    def clear(self) -> None:
        self._frames.clear()
        self._bytes = 0


class SwitchPort:
    """One guest's end of one network. `outlet`: the socket to which its QEMU sends frames; `inlet`: the one on which
    its QEMU receives them; `others`: the other guests' inlets, which may be created later.
    """

    def __init__(self, *, outlet: Path, inlet: Path, others: tuple[Path, ...]) -> None:
        self._outlet, self._inlet, self._others = outlet, inlet, others
        self._tasks: list[asyncio.Task[None]] = []
        self._own: socket.socket | None = None

    def open(self) -> None:
        """Listen on the outlet. Call this before QEMU sends anything."""
        own = self._own = sockets.bind_socket(self._outlet, socket.SOCK_DGRAM)
        own.setblocking(False)
        queues = [_Queue() for _ in self._others]
        asyncio.get_running_loop().add_reader(own, _receive_frames, own, queues)
        self._tasks = [
            asyncio.create_task(_pass_on(queue, inlet)) for queue, inlet in zip(queues, self._others, strict=True)
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._own is not None:
            asyncio.get_running_loop().remove_reader(self._own)
            self._own.close()
        for path in (self._outlet, self._inlet):
            path.unlink(missing_ok=True)


def _receive_frames(own: socket.socket, queues: list[_Queue]) -> None:
    for _ in range(_FRAMES_AT_ONCE):
        try:
            frame = own.recv(_FRAME_BYTES)
        except OSError:
            return  # nothing to read now
        for queue in queues:
            queue.put(frame)


async def _pass_on(queue: _Queue, inlet: Path) -> None:
    """Send queued frames to one peer. The socket is connected: only then can a task wait for the peer to have room."""
    loop = asyncio.get_running_loop()
    while True:
        frame = await queue.get()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            peer.connect(str(inlet))
            while True:
                await loop.sock_sendall(peer, frame)
                frame = await queue.get()
        # The peer's QEMU does not run (yet, or any longer); its queued frames are lost.
        queue.clear()
        await asyncio.sleep(_RETRY_S)
