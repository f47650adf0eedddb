"""A proxy between the testbed and QEMU's monitor: forwards messages and descriptors, and damages them on command."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import threading
import time
from pathlib import Path


class Damage(enum.Enum):
    """CLOSED: closes the socket. HALF: sends half of the next message, then nothing. HALF_CLOSED: the same, then
    closes. MUTE: sends nothing.

    The values are names of the table of faults.
    """

    CLOSED = "QMP socket closed"
    HALF = "half a JSON message"
    HALF_CLOSED = "half a JSON message and the end"
    MUTE = "a QMP answer that never comes"


class Proxy:
    """Waits until QEMU listens on `socket`, then listens on `path`."""

    def __init__(self, monitor: Path) -> None:
        self.path = monitor.with_name("between")
        self._qemu = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._qemu.connect(str(monitor))
                break
            except OSError:
                time.sleep(0.01)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen(1)
        self._damage: Damage | None = None
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def hurt(self, damage: Damage) -> None:
        """Damage messages from now on."""
        self._damage = damage
        if damage is Damage.CLOSED and self._client is not None:
            self._client.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._client, _ = self._listening.accept()
            silent = False
            while True:
                ready, _, _ = select.select([self._client, self._qemu], [], [])
                if self._client in ready:
                    data, files, _, _ = socket.recv_fds(self._client, 1 << 16, 4)
                    if not data:
                        return
                    socket.send_fds(self._qemu, [data], files) if files else self._qemu.sendall(data)
                    for file in files:
                        socket.close(file)
                if self._qemu in ready:
                    data = self._qemu.recv(1 << 16)
                    if not data:
                        return
                    if self._damage in (Damage.HALF, Damage.HALF_CLOSED) and not silent:
                        self._client.sendall(data[: len(data) // 2])
                        silent = True
                        if self._damage is Damage.HALF_CLOSED:
                            self._client.shutdown(socket.SHUT_RDWR)
                    elif self._damage is None:
                        self._client.sendall(data)

    def close(self) -> None:
        for one in (self._client, self._qemu, self._listening):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
        self._thread.join(10)
