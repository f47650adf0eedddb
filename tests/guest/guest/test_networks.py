"""Guests on private networks: they reach each other by name, and nothing else."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.guest.factory import GuestFactory
from testbed.guest.setup import apply
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology.load import parse

THREE = """\
version: 1
guests:
  a: {networks: {one: {}, two: {address: 192.168.9.1/24}}}
  b: {networks: {one: {}}}
  c: {networks: {two: {address: 192.168.9.7/24}}}
"""
# $1: a host, $2: seconds. Prints its SSH server's greeting, or nothing within that time.
GREET = 'timeout $2 bash -c "exec 3<>/dev/tcp/$1/22 && head -n 1 <&3"'
SERVE = """\
import hashlib, socket
with socket.create_server(("", 2000)) as server:
    print("ready", flush=True)
    with server.accept()[0] as peer:
        got = hashlib.sha256()
        while data := peer.recv(65536):
            got.update(data)
print(got.hexdigest())
"""
# Starts the server in the background: its port is open when the command ends.
START = f"""\
cat >/tmp/serve.py <<'END'
{SERVE}END
python3 /tmp/serve.py >/tmp/served 2>&1 &
until grep -q ready /tmp/served; do sleep 0.1; done
"""


@pytest.mark.slow
async def test_guests_reach_only_guests_of_their_networks_by_name(
    factory: GuestFactory, kernel: KernelFiles, tmp_path: Path
) -> None:
    async with (
        factory.guests(parse(THREE, "three.yaml"), kernel, tmp_path) as guests,
        contextlib.AsyncExitStack() as stacks,
    ):
        for guest in guests.values():
            await stacks.enter_async_context(apply.stack_applied(guest))
        a, b, c = guests["a"], guests["b"], guests["c"]
        pairs = ((a, "b"), (a, "c"), (b, "a"), (c, "a"))
        reached = await asyncio.gather(*(one.script(GREET, host, "60") for one, host in pairs))
        assert all(result.stdout.startswith("SSH-2.0-dropbear") for result in reached)
        for one, host in ((c, "10.77.1.2"), (b, "192.168.9.7")):
            assert (await one.script(GREET, host, "2", check=False)).stdout == ""

        assert " 0% packet loss" in (await c.run("ping", "-c", "3", "-i", "0.2", "a")).stdout

        # More than fits into the sockets, so that frames wait.
        await b.script(START)
        await a.script("head -c 8M /dev/urandom >/tmp/sent && timeout 60 bash -c 'cat /tmp/sent >/dev/tcp/b/2000'")
        sent = (await a.script("sha256sum </tmp/sent | cut -d' ' -f1")).stdout
        served = await b.script("until [ $(wc -l </tmp/served) = 2 ]; do sleep 0.1; done; tail -n 1 /tmp/served")
        assert served.stdout == sent

        # A QEMU that a guest controls cannot reach the other guests' sockets.
        there = b.spec.wiring.own
        assert {path.name for path in there.iterdir()} == {"one.in", "one.out"}
        with pytest.raises(HostError, match=r"No such file|Permission denied"):
            await a.monitor.execute(
                "chardev-add", {"id": "bad", "backend": {"type": "file", "data": {"out": str(there / "new")}}}
            )
    folder = a.spec.wiring.folder
    assert {path.name for path in folder.iterdir()} == set("abc") and not list(folder.glob("*/*"))
