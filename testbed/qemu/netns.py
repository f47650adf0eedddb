"""Makes TCP sockets in the network namespace of one QEMU, which no other program can enter.

Only who can make sockets there can connect to the port that QEMU forwards to its guest's SSH server.

A socket stays in the namespace that it was made in, whoever holds its descriptor, and a socket that `accept` returns is
in the namespace of the listening socket. connect(2) with AF_UNSPEC turns a connected socket into an unconnected one. So
two sockets that were made there (`jail_exec.py`) are enough to make more, without a privilege and without a process
that would have to stay in the namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket

_LIBC = ctypes.CDLL(None, use_errno=True)
_SOCKADDR_BYTES = 16
# Both ends are ours; only a QEMU that was taken over and is not confined could delay this, for its own guest.
_TIMEOUT_S = 5.0
# The backlog of the listening socket.
_MOST_STRANGERS = 128


class NetworkNamespace:
    """A QEMU's network namespace. Made before that QEMU is started, which inherits `channel`."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._made_there: tuple[socket.socket, ...] = ()

    @property
    def channel(self) -> int:
        """The descriptor over which `jail_exec.py` sends two sockets."""
        return self._theirs.fileno()

    def _receive(self) -> tuple[socket.socket, socket.socket]:
        """Receive the two sockets. They are sent before QEMU itself starts, so this does not block once it runs."""
        self._theirs.close()
        self._ours.setblocking(False)
        _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if len(descriptors) != 2:
            raise ConnectionAbortedError("QEMU was started without its network namespace")
        listening, unconnected = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        for one in (listening, unconnected):
            one.settimeout(_TIMEOUT_S)
        return listening, unconnected

    def socket(self) -> socket.socket:
        """Make a new unconnected socket in the namespace.

        :raise OSError: it cannot be made.
        """
        if not self._made_there:
            self._made_there = self._receive()
        listening, unconnected = self._made_there
        try:
            unconnected.connect(listening.getsockname())
            made = _accept(listening, unconnected.getsockname())
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


def _accept(listening: socket.socket, expected: object) -> socket.socket:
    """Accept the connection from our own address; close others, which only a program in that namespace could make."""
    for _ in range(_MOST_STRANGERS):
        made, peer = listening.accept()
        if peer == expected:
            return made
        made.close()
    raise ConnectionAbortedError("something else connects in QEMU's network namespace")


def _disconnect(one: socket.socket) -> None:
    """Dissolve a socket's connection, so that it can be connected elsewhere (connect(2)); Python has no function for
    it.
    """
    unspecified = bytes(_SOCKADDR_BYTES)  # a sockaddr whose family is AF_UNSPEC, 0
    if _LIBC.connect(one.fileno(), unspecified, _SOCKADDR_BYTES) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
