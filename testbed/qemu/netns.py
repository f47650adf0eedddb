"""Makes TCP sockets in the network namespace of one QEMU, which no program but that QEMU is in: who cannot make sockets there cannot
connect to the port that it forwards to its guest's SSH server.

A socket stays in the namespace that it was made in, whoever has it, and one that `accept` returns is in its listener's. connect(2) with
AF_UNSPEC makes a connected socket an unconnected one. So two sockets that were made there (`confine.py`) are enough to make more, without
a privilege and without a process that would have to stay in there.
"""

from __future__ import annotations

import ctypes
import os
import socket

_LIBC = ctypes.CDLL(None, use_errno=True)
_SOCKADDR_BYTES = 16
# Both ends are ours; only a QEMU that was taken over and is not confined could make this wait, for its own guest.
_LIMIT_S = 5.0
# As many as can wait for `accept`.
_MOST_OTHERS = 128


class NetworkNamespace:
    """A QEMU's network namespace. Made before that QEMU is started, which inherits `handed`."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._made_there: tuple[socket.socket, ...] = ()

    @property
    def handed(self) -> int:
        """The descriptor over which `confine.py` sends two sockets."""
        return self._theirs.fileno()

    def _received(self) -> tuple[socket.socket, socket.socket]:
        """The two sockets, which are sent before QEMU itself is started: nothing waits here once that runs."""
        self._theirs.close()
        self._ours.setblocking(False)
        _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if len(descriptors) != 2:
            raise ConnectionAbortedError("QEMU was started without its network namespace")
        listening, unconnected = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        for one in (listening, unconnected):
            one.settimeout(_LIMIT_S)
        return listening, unconnected

    def socket(self) -> socket.socket:
        """A new socket in there, not connected.

        :raise OSError: it cannot be made.
        """
        if not self._made_there:
            self._made_there = self._received()
        listening, unconnected = self._made_there
        try:
            unconnected.connect(listening.getsockname())
            made = _accepted(listening, unconnected.getsockname())
        finally:
            _disconnect(unconnected)
        try:
            _disconnect(made)
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        for one in (self._ours, self._theirs, *self._made_there):
            one.close()


def _accepted(listening: socket.socket, expected: object) -> socket.socket:
    """The connection that comes from our own address; others, which only what runs in there could make, are dropped."""
    for _ in range(_MOST_OTHERS):
        made, peer = listening.accept()
        if peer == expected:
            return made
        made.close()
    raise ConnectionAbortedError("something else connects in QEMU's network namespace")


def _disconnect(one: socket.socket) -> None:
    """Dissolve a socket's connection, so that it can be connected to something else (connect(2)); Python has no name for it."""
    if (
        _LIBC.connect(one.fileno(), bytes(_SOCKADDR_BYTES), _SOCKADDR_BYTES) < 0
    ):  # a sockaddr whose family is AF_UNSPEC, 0
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
