"""Where a guest's SSH server is reached, and with which keys. Loads no SSH client."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Protocol

from testbed.guest.channels.ssh_keys import SshKey
from testbed.host import other_users
from testbed.host.sockets import connect_to_guest
from testbed.qemu.netns import NetworkNamespace


class Endpoint(Protocol):
    """Where a guest's SSH server is reached."""

    async def connect(self) -> socket.socket:
        """Connect to the server. :raise WireBroken: nothing listens there."""

    def why_silent(self) -> str:
        """Return what on this machine explains a server that does not answer, to be added to a message; or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Keys of an SSH connection. `key`: ours. `host_key`: the public half of the server's.

    `key_installed` is set once the server accepts our key, which is not offered before; None if it does already.
    """

    key: SshKey
    host_key: str
    key_installed: asyncio.Event | None = None


class ForwardedPort:
    """The port that QEMU forwards to a guest's SSH server: on 127.0.0.1 in the network namespace `netns`, or, if that
    is None, of this machine, where every user can connect to it. QEMU chooses the number, which is then written to
    `port`.
    """

    def __init__(self, guest: str, netns: NetworkNamespace | None) -> None:
        self._guest, self._netns = guest, netns
        self.port = 0

    async def connect(self) -> socket.socket:
        """Connect to the port.

        :raise WireBroken: nothing listens there.
        """
        if self._netns is None:
            return await connect_to_guest(self._guest, self.port)
        return await connect_to_guest(self._guest, self.port, self._netns.socket)

    def why_silent(self) -> str:
        """Return which other users are connected to the port, to explain a server that does not answer; or nothing."""
        return other_users.describe_connections(self.port) if self._netns is None and self.port else ""
