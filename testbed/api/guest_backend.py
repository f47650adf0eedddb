"""The operations of a running guest that the API needs: of a guest of this process, or of one that a supervisor
owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from testbed.api.devices import Disk, Loop
from testbed.guest import hardware_control
from testbed.guest.channels.ssh import Result
from testbed.guest.guest import Guest
from testbed.guest.setup.block_stack import Stack
from testbed.hardware import commands
from testbed.topology.model import GuestModel

# No timeout here: the caller has one.
_FOR_EVER_S = 1e6
HardwareState = dict[str, list[str]]


class GuestBackend(Protocol):
    """A guest that is set up. `devices`: /dev path of each device of its topology. `command_s`: the default timeout
    of a command."""

    name: str
    model: GuestModel
    kernel: str
    release: str
    logs: Path
    command_s: float

    @property
    def disks(self) -> dict[str, Disk]: ...

    @property
    def loops(self) -> dict[str, Loop]: ...

    @property
    def devices(self) -> Mapping[str, str]: ...

    async def run(self, script: str, *arguments: str, stdin: bytes = b"") -> Result:
        """Run a shell script in the guest, with any exit status and without a timeout.

        :raise GuestLost: the guest has ended. :raise WireBroken: the connection is broken.
        """

    async def put(self, source: Path, target: str) -> None: ...

    async def get(self, source: str, target: Path, most_bytes: int | None) -> None: ...

    async def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """Execute a QMP command. :raise HostError: QEMU refuses it."""

    async def change_hardware(self, words: Sequence[str]) -> HardwareState:
        """Run a command of `hardware/commands.py`; returns how its disk, or the machine, behaves then."""

    async def describe_hardware(self, disk: str) -> HardwareState:
        """Return how a disk, or the machine, behaves now."""


class LocalGuest:
    """A guest of this process."""

    def __init__(self, guest: Guest, stack: Stack, kernel: str, release: str) -> None:
        self._guest, self._stack = guest, stack
        self.name, self.model, self.logs = guest.name, guest.model, guest.logs
        self.kernel, self.release = kernel, release
        self.command_s = guest.deadlines.command_s

    @property
    def disks(self) -> dict[str, Disk]:
        return {
            name: Disk(
                name=name, path=device.path, number=device.number, serial=device.serial, size_bytes=device.size_bytes
            )
            for name, device in self._guest.disks.items()
        }

    @property
    def loops(self) -> dict[str, Loop]:
        return {
            name: Loop(name=name, path=loop.path, backing_file=loop.backing_file, disks=loop.disks)
            for name, loop in self._stack.loops.items()
        }

    @property
    def devices(self) -> Mapping[str, str]:
        return {**self._stack.devices, **{name: disk.path for name, disk in self._guest.disks.items()}}

    async def run(self, script: str, *arguments: str, stdin: bytes = b"") -> Result:
        return await self._guest.script(script, *arguments, check=False, timeout_s=_FOR_EVER_S, stdin=stdin)

    async def put(self, source: Path, target: str) -> None:
        await self._guest.put(source, target, timeout_s=_FOR_EVER_S)

    async def get(self, source: str, target: Path, most_bytes: int | None) -> None:
        await self._guest.get(source, target, most_bytes=most_bytes, timeout_s=_FOR_EVER_S)

    async def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        guest = self._guest
        return await guest.qmp.execute(command, arguments)

    async def change_hardware(self, words: Sequence[str]) -> HardwareState:
        return await hardware_control.apply(self._guest, words)

    async def describe_hardware(self, disk: str) -> HardwareState:
        if disk == commands.MACHINE:
            return await hardware_control.describe_machine(self._guest)
        return await hardware_control.describe(self._guest.hardware, disk)
