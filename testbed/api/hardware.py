"""Changes how a guest's disks and machine behave, with the arguments of the command line (`testbed throttle`,
`delay`, `inject`, ...)."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.api.event_loops import LoopRunner
from testbed.api.guest_backend import GuestBackend, HardwareState
from testbed.hardware.commands import MACHINE, OFF, SURPRISE

__tracebackhide__ = True  # pytest shows no frames of this module


class Hardware:
    """Each call returns how the disk behaves then, as on the command line: `throttle`, `delay`, `inject` and `errors`.

    `disk` is a name in the topology. Arguments can be words or keywords, with `_` for `-`: `iops_total=100` is
    `iops-total=100`.

    Every call raises UsageError if its arguments are wrong, in which case nothing has changed; HostError if QEMU
    refuses the change; GuestError if the guest does.
    """

    def __init__(self, backend: GuestBackend, runner: LoopRunner) -> None:
        self._backend, self._runner = backend, runner

    async def throttle(self, disk: str, *words: str, **limits: str | int) -> HardwareState:
        """Set other limits: a profile (`hdd-7200`), `iops-total=100`, `bps-read=20M` and the like, or `off`;
        `scale=0.5`."""
        return await self.tell("throttle", disk, *words, *_pairs(limits))

    async def delay(self, disk: str, *words: str, **delays: str) -> HardwareState:
        """Delay each request: `5ms`, `read=5ms`, `jitter=1ms`, a profile, or `off`."""
        return await self.tell("delay", disk, *words, *_pairs(delays))

    async def inject(self, disk: str, *words: str) -> HardwareState:
        """Make requests fail: `read=EIO`, `write=ENOSPC,count=3`, `write=lost,range=1M-2M`, `read-only`, or `off`."""
        return await self.tell("inject", disk, *words)

    async def hang(self, disk: str, duration: str) -> HardwareState:
        """Complete no request for a duration (`5s`); `off` completes them now."""
        return await self.tell("hang", disk, duration)

    async def unplug(self, disk: str, *, surprise: bool = False) -> HardwareState:
        """Unplug a disk, whatever uses it in the guest. `surprise`: it fails before the guest is notified."""
        return await self.tell("unplug", disk, *([SURPRISE] if surprise else []))

    async def plug(self, disk: str) -> HardwareState:
        """Plug an unplugged disk in again, with its content."""
        return await self.tell("plug", disk)

    async def resize(self, disk: str, size: str | int) -> HardwareState:
        """Change the size of a disk."""
        return await self.tell("resize", disk, str(size))

    async def memory(self, size: str | int = OFF) -> HardwareState:
        """Limit the guest's memory; `off` removes the limit. Only for a guest that was booted cold."""
        return await self.tell("memory", str(size))

    async def cpus(self, count: int | str = OFF) -> HardwareState:
        """Set the number of online CPUs; `off`: all of them."""
        return await self.tell("cpus", str(count))

    async def tell(self, *words: str) -> HardwareState:
        """Run any of these commands, given as words."""
        return await self._runner.do(self._backend.change_hardware(words))

    async def condition(self, disk: str = MACHINE) -> HardwareState:
        """Return how a disk behaves now; without one, the machine: `memory` and `cpus`."""
        return await self._runner.do(self._backend.describe_hardware(disk))


def _pairs(given: Mapping[str, str | int]) -> list[str]:
    return [f"{name.replace('_', '-')}={value}" for name, value in given.items()]
