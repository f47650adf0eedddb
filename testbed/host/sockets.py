"""Sockets of this machine: listening unix sockets, and connections to the ports that QEMU forwards to its guest."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from testbed.errors import WireBroken


def bind_socket(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Bind a unix socket to a path; only this user can connect to it."""
    own = socket.socket(socket.AF_UNIX, kind)
    try:
        os.fchmod(own.fileno(), 0o600)  # bind() creates the file with the mode of the socket
        own.bind(str(path))
    except OSError:
        own.close()
        raise
    return own


async def connect_to_guest(guest: str, port: int, made: Callable[[], socket.socket] = socket.socket) -> socket.socket:
    """Connect to a port of 127.0.0.1 that QEMU forwards to a guest.

    `made` creates the socket, in the right network namespace.

    :raise WireBroken: nothing listens there.
    """
    try:
        wire = made()
    except OSError as error:
        raise WireBroken(f"guest {guest}: SSH: a socket in its QEMU's network: {error}") from error
    try:
        wire.setblocking(False)
        await asyncio.get_running_loop().sock_connect(wire, ("127.0.0.1", port))
    except BaseException as error:
        wire.close()  # also if the caller is cancelled
        if isinstance(error, OSError):
            raise WireBroken(f"guest {guest}: SSH on port {port}: {error}") from error
        raise
    return wire
