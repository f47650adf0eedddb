"""Connects to the SSH server of a guest while the guest wakes up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from testbed.guest.channels.ssh_endpoint import Credentials, ForwardedPort
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.launch_spec import LaunchSpec
from testbed.host.logfile import Log

if TYPE_CHECKING:
    from testbed.guest.channels.ssh import Shell


async def connect(
    spec: LaunchSpec, port: ForwardedPort, key: SshKey, host_key: SshKey, identified: asyncio.Event, log: Log
) -> Shell:
    """Shake hands with a clone as soon as its server runs, and log in once it knows our `key`, when `identified` is
    set.

    :raise GuestError: it has another host key. :raise WireBroken: it refuses the login, or nothing listens.
    """
    if spec.template is None:
        await identified.wait()  # the SSH server of a guest that boots does not listen before
    wire = await port.connect()
    try:
        shell = await asyncio.to_thread(_load_client)
        return await shell.connect(
            spec.name,
            wire,
            credentials=Credentials(key=key, host_key=host_key.public, key_installed=identified),
            endpoint=port,
            command_s=spec.deadlines.command_s,
            log=log,
            environment=spec.model.environment,
        )
    except BaseException:
        wire.close()
        raise


def _load_client() -> type[Shell]:
    """Import the SSH client, which takes about 0.3 s, half of a clone's start: hence in a thread, while the clone wakes
    up.
    """
    from testbed.guest.channels.ssh import Shell

    return Shell
