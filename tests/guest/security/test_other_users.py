"""Another user of this machine, who holds connections to the port of a guest's QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.guest.factory import GuestFactory
from testbed.host import registry, ssh_proxy
from testbed.host.facts import JailSupport
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from testbed.vms import control

_HOLD = """
import os, socket, sys
os.setuid(65534)
try:
    held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(40)]
except OSError as error:
    held = []
print(len(held), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def neighbour(port: int) -> Iterator[tuple[int, int]]:
    """Hold 40 idle connections, if possible; yield the process's id and the number of its connections."""
    words = ["/usr/bin/python3", "-I", "-S", "-c", _HOLD, str(port)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        yield other.pid, int(other.stdout.readline())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("alone", [True, False], ids=["in a network of its own", "in this machine's"])
async def test_another_user_cannot_block_a_guest_or_is_named(
    alone: bool, factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path, tmp_path: Path
) -> None:
    if not alone:
        factory.host = replace(factory.host, jail=JailSupport(why_no_net_ns="a test"))
    elif not factory.host.jail.net_ns:
        pytest.skip(factory.host.jail.why_no_net_ns)
    async with factory.guest("g0", model, kernel, logs) as guest, control.serve_ssh_connections(tmp_path, guest):

        async def another() -> None:
            """Run a command on a new connection while another one has the first."""
            await asyncio.gather(guest.script("sleep 1"), guest.run("true"))

        with neighbour(guest.ssh_port.port) as (pid, held):
            if alone:
                assert held == 0
                await another()
            else:
                assert held == 40
                named = (
                    rf"nobody \(uid 65534\) holds 40 connections to 127\.0\.0\.1:{guest.ssh_port.port} "
                    rf"\(pid {pid} of nobody"
                )
                with pytest.raises(HostError, match=named):
                    await another()
            descriptor, why = await asyncio.to_thread(ssh_proxy.connection, str(tmp_path / registry.SSH), 20)
            os.close(descriptor)
            assert (f"pid {pid} of nobody" in why) is not alone
