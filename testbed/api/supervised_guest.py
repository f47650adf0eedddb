"""Guests that can be kept when their test has failed: started by `testbed up`, and used over their supervisors'
sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from testbed.api.devices import Disk, Loop
from testbed.api.guest_backend import HardwareState
from testbed.errors import GuestLost, HostError, TestbedError, UsageError, WireBroken
from testbed.guest.channels.ssh import Result, Shell
from testbed.guest.channels.ssh_endpoint import Credentials
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.setup import block_stack
from testbed.hardware import commands
from testbed.host import process, registry, ssh_proxy
from testbed.host.control_client import ControlClient
from testbed.host.paths import Folders
from testbed.host.registry import VmHandle
from testbed.text import parse_json
from testbed.topology import Topology, trust

_UP_S = 1800.0
_DOWN_S = 90.0
# How long a supervisor may take to record that its guest is lost.
_NOTED_S = 5.0
_FOR_EVER_S = 1e6
# A running supervisor answers in milliseconds; one that is stopped by a signal does not.
_DIAL_S = 60.0
_LONGEST_NAME = 24


class SupervisedGuest:
    """A guest of a supervisor. `stays`: do not end it after its test."""

    def __init__(self, supervised: VmHandle, shell: Shell, topology: Topology, kernel: str) -> None:
        record = supervised.record
        self._supervised, self._shell = supervised, shell
        self.name, self.release, self.logs = record.name, record.release, Path(record.evidence)
        self.model, self.kernel = topology.guests[record.guest], kernel
        self.command_s = 0.0  # until `read_disks`
        self.devices: Mapping[str, str] = {}
        self.disks: dict[str, Disk] = {}
        self.stays = False

    @property
    def loops(self) -> dict[str, Loop]:
        found = block_stack.plan_stack(self.model, self.devices).loops
        return {
            name: Loop(name=name, path=one.path, backing_file=one.backing_file, disks=one.disks)
            for name, one in found.items()
        }

    async def read_disks(self) -> None:
        """Read the guest's disks and command timeout from the supervisor."""
        answer = await ControlClient(self._supervised).disks()
        self.command_s = answer["command_s"]
        self.disks = {
            name: Disk(name=name, **{key: one[key] for key in ("path", "number", "serial", "size_bytes")})
            for name, one in answer["disks"].items()
        }
        self.devices = {**self._supervised.record.devices, **{name: disk.path for name, disk in self.disks.items()}}

    async def run(self, script: str, *arguments: str, stdin: bytes = b"") -> Result:
        running = self._shell.script(script, *arguments, check=False, timeout_s=_FOR_EVER_S, stdin=stdin)
        try:
            return await running
        except WireBroken as error:
            raise await self._loss_or(error) from error

    async def _loss_or(self, error: TestbedError) -> TestbedError:
        """Return the loss of the guest, if that broke the connection; else the error itself."""
        until = time.monotonic() + _NOTED_S
        while time.monotonic() < until:
            now = registry.read_record(self._supervised.folder)
            if now is None or now.state == registry.LOST:
                return GuestLost(self.name, "ready", now.why if now is not None else "its supervisor is gone")
            await asyncio.sleep(0.1)
        return error

    async def put(self, source: Path, target: str) -> None:
        await self._shell.put(source, target)

    async def get(self, source: str, target: Path, most_bytes: int | None) -> None:
        await self._shell.get(source, target, most_bytes=most_bytes)

    async def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        return await ControlClient(self._supervised).qmp(command, arguments)

    async def change_hardware(self, words: Sequence[str]) -> HardwareState:
        verb = commands.parse(words).verb  # mistakes are reported here, to the caller
        answer = await ControlClient(self._supervised).change_hardware(words)
        if verb == "plug":
            await self.read_disks()
        return dict(next(iter(answer.values())))

    async def describe_hardware(self, disk: str) -> HardwareState:
        return dict((await ControlClient(self._supervised).hardware())[disk])

    @property
    def lives(self) -> bool:
        """Whether the guest is ready."""
        now = registry.read_record(self._supervised.folder)
        return now is not None and now.state == registry.READY

    async def close(self) -> None:
        """Close the connection and end the guest, unless it stays."""
        await self._shell.close()
        if not (self.stays and self.lives):
            await _end(self._supervised)


class _Endpoint:
    """Connects to the SSH server of a supervisor's guest."""

    def __init__(self, supervised: VmHandle) -> None:
        self._supervised = supervised
        self._why = ""

    async def connect(self) -> socket.socket:
        name, path = self._supervised.record.name, str(self._supervised.folder / registry.SSH)
        try:
            descriptor, self._why = await asyncio.to_thread(ssh_proxy.connection, path, _DIAL_S)
        except OSError as error:
            raise WireBroken(f"guest {name}: SSH: {error}") from error
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(False)
        return connection

    def why_silent(self) -> str:
        return self._why


@contextlib.asynccontextmanager
async def start_supervised(
    topology: Topology, kernel: str, kernels: Mapping[str, str], folders: Folders, logs: Path, *, cold: bool
) -> AsyncIterator[dict[str, SupervisedGuest]]:
    """Start the guests of a topology, each with a supervisor. `kernel`: for guests without one in the topology;
    `kernels`: of each.

    :raise HostError: a guest did not get ready; with the error of `testbed up`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / "topology.yaml"
    text = json.dumps(topology.model_dump(mode="json", by_alias=True, exclude_unset=True))
    file.write_text(text, encoding="utf-8")
    trusted = all(trust.are_trusted(model.qemu_args) for model in topology.guests.values())
    name = re.sub(r"[^a-z0-9]+", "-", f"t-{logs.name}".lower())[:_LONGEST_NAME].strip("-") + f"-{secrets.token_hex(2)}"
    # The caller has waited for admission already.
    options = ["--json", "--quiet", "--at-once", "--logs", str(logs), *(["--cold"] if cold else [])]
    if all(model.kernel is None for model in topology.guests.values()):
        options += ["--kernel", kernel]
    env = {trust.VARIABLE: trust.variable_with(trust.content_hash(text))} if trusted else {}
    # -P: do not import modules from the current folder.
    words: list[str | Path] = [sys.executable, "-P", "-m", "testbed", "up", file, "--name", name, *options]
    done = await process.run(words, timeout_s=_UP_S, env=env, check=False)
    if done.status != 0:
        raise HostError(f"the guests do not get ready: {done.stderr.strip()}")
    names = [record["name"] for record in parse_json(done.stdout)]
    found: dict[str, SupervisedGuest] = {}
    try:
        for name in names:
            supervised = registry.find_vm(folders, name)
            guest = supervised.record.guest
            found[guest] = SupervisedGuest(supervised, await _connect(supervised, topology), topology, kernels[guest])
            await found[guest].read_disks()
        yield found
    finally:
        for one in found.values():
            await one.close()
        for name in set(names) - {one.name for one in found.values()}:
            with contextlib.suppress(UsageError):  # it has ended already
                await _end(registry.find_vm(folders, name))


async def _end(supervised: VmHandle) -> None:
    with contextlib.suppress(TestbedError):
        await ControlClient(supervised).down()
    await registry.wait_until_gone(supervised, _DOWN_S)


async def _connect(supervised: VmHandle, topology: Topology) -> Shell:
    record = supervised.record
    key = load_ssh_private_key((supervised.folder / "key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    host_key = (supervised.folder / "known_hosts").read_text(encoding="utf-8").split(maxsplit=1)[1].strip()
    endpoint = _Endpoint(supervised)
    return await Shell.connect(
        record.name,
        await endpoint.connect(),
        credentials=Credentials(key=SshKey(key.private_bytes_raw()), host_key=host_key),
        endpoint=endpoint,
        command_s=_FOR_EVER_S,
        environment=topology.guests[record.guest].environment,
    )
