"""A guest's plug in a private network: takes the frames that its QEMU sends, and passes them on to every other guest's QEMU.

No network of the host is involved: frames are datagrams on unix sockets in a folder that only this user can enter. A guest whose peers
are not there, or do not take frames fast enough, loses frames, as on any network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from testbed import wires

# An Ethernet frame, as large as virtio-net's segmentation offload makes one, with its header.
_FRAME_BYTES = 1 << 17
_WAITING_FRAMES = 512
_RETRY_S = 0.05


class Plug:
    """One guest's end of one network. `outlet`: where its QEMU sends frames to; `inlet`: where that takes them; `others`: the other guests'
    inlets, which may come later."""

    def __init__(self, *, outlet: Path, inlet: Path, others: tuple[Path, ...]) -> None:
        self._outlet, self._inlet, self._others = outlet, inlet, others
        self._tasks: list[asyncio.Task[None]] = []
        self._own: socket.socket | None = None

    def open(self) -> None:
        """Listen. Call before QEMU sends anything."""
        own = self._own = wires.bound(self._outlet, socket.SOCK_DGRAM)
        own.setblocking(False)
        queues: list[asyncio.Queue[bytes]] = [asyncio.Queue(_WAITING_FRAMES) for _ in self._others]
        self._tasks = [asyncio.create_task(self._take(own, queues), name=f"frames of {self._outlet.name}")]
        self._tasks += [asyncio.create_task(_pass_on(queue, inlet)) for queue, inlet in zip(queues, self._others, strict=True)]

    async def _take(self, own: socket.socket, queues: list[asyncio.Queue[bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            frame = await loop.sock_recv(own, _FRAME_BYTES)
            for queue in queues:
                with contextlib.suppress(asyncio.QueueFull):
                    queue.put_nowait(frame)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._own is not None:
            self._own.close()
        for path in (self._outlet, self._inlet):
            path.unlink(missing_ok=True)


async def _pass_on(queue: asyncio.Queue[bytes], inlet: Path) -> None:
    """A socket that is connected waits for its peer to have room; one that is not would never be told."""
    loop = asyncio.get_running_loop()
    while True:
        frame = await queue.get()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            peer.connect(str(inlet))
            while True:
                await loop.sock_sendall(peer, frame)
                frame = await queue.get()
        # Its QEMU is not there (any more, or yet); what was meant for it meanwhile is lost.
        while not queue.empty():
            queue.get_nowait()
        await asyncio.sleep(_RETRY_S)
