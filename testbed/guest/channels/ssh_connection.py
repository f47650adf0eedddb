"""Opens SSH connections to a guest: one key, one algorithm of each kind, and errors as ours."""

from __future__ import annotations

import asyncio
import socket

import asyncssh

from testbed.errors import GuestError, WireBroken
from testbed.guest.channels.ssh_endpoint import Credentials


class _Client(asyncssh.SSHClient):
    """Offers one key, once the server knows it."""

    def __init__(self, key: asyncssh.SSHKey, key_installed: asyncio.Event | None) -> None:
        self._keys = [key]
        self._key_installed = key_installed

    async def public_key_auth_requested(self) -> asyncssh.SSHKey | None:
        if self._key_installed is not None:
            await self._key_installed.wait()
        return self._keys.pop() if self._keys else None


async def open_connection(guest: str, wire: socket.socket, credentials: Credentials) -> asyncssh.SSHClientConnection:
    """Shake hands and log in as root on a connected socket.

    :raise GuestError: the server has another host key. :raise WireBroken: it refuses us, or does not speak SSH.
    """
    own = asyncssh.import_private_key(credentials.key.openssh)
    host_key = asyncssh.import_public_key(credentials.host_key)
    try:
        connection, _ = await asyncssh.create_connection(
            lambda: _Client(own, credentials.key_installed),
            sock=wire,
            username="root",
            client_keys=None,
            known_hosts=([host_key], [], []),
            config=None,
            agent_path=None,
            preferred_auth="publickey",
            # Handshakes are dear under emulation: one algorithm of each kind, and the ones that the server has
            # cheapest.
            kex_algs=["curve25519-sha256"],
            encryption_algs=["chacha20-poly1305@openssh.com"],
            server_host_key_algs=["ssh-ed25519"],
            compression_algs=None,
            login_timeout=None,
            connect_timeout=None,
            keepalive_interval=0,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise GuestError(f"guest {guest}: SSH: expected the host key that this guest was given, got another") from error
    except (asyncssh.Error, OSError) as error:
        raise WireBroken(f"guest {guest}: SSH: {error}") from error
    return connection
