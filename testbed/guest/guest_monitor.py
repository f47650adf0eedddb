"""QEMU's monitor as the code of a guest uses it: each command ends early if the guest is lost."""

from __future__ import annotations

from typing import Any

from testbed.guest.launch_spec import Wait
from testbed.qemu.monitor import Monitor
from testbed.qemu.qmp_command import QmpCommand


class GuestMonitor:
    """Runs QMP commands for one guest.

    Every method raises GuestLost if the guest ends, or `limit_s` passes, before QEMU answers; otherwise as the method
    of `Monitor` does.
    """

    def __init__(self, monitor: Monitor, wait: Wait, limit_s: float) -> None:
        self._monitor, self._wait, self._limit_s = monitor, wait, limit_s

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, log: bool = True) -> Any:
        """Run one command and return its answer. `log`: False to log only a refusal."""
        return await self._wait(self._monitor.execute(command, arguments, log=log), self._limit_s)

    async def run(self, commands: tuple[QmpCommand, ...]) -> None:
        """Run commands in order; stop at the first that QEMU refuses."""
        await self._wait(self._monitor.run(commands), self._limit_s)

    async def run_pipelined(self, commands: tuple[QmpCommand, ...]) -> None:
        """Send all commands in order without waiting for the answers in between."""
        await self._wait(self._monitor.run_pipelined(commands), self._limit_s)

    async def limits(self, group: str) -> dict[str, int]:
        """Return the current limits of a throttle group, by their QEMU names."""
        found: dict[str, int] = await self._wait(self._monitor.throttle_limits(group), self._limit_s)
        return found

    async def send_file(self, name: str, descriptor: int) -> None:
        """Pass an open file to QEMU under a name."""
        await self._wait(self._monitor.send_file(name, descriptor), self._limit_s)
