"""What a guest's disks and its machine are made to do, in the words of the command line (`testbed throttle`, `delay`, `inject`, ...)."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.api.event_loops import LoopRunner
from testbed.api.guest_backend import GuestBackend, Said
from testbed.hardware.commands import MACHINE, OFF, SURPRISE

__tracebackhide__ = True  # pytest shows no frames of this module


class Hardware:
    """Each call returns how the disk is then: `throttle`, `delay`, `inject` and `errors`, in words.

    `DISK` is a name of the topology. Words can also be given as keywords, with `_` for `-`: `iops_total=100` is `iops-total=100`.

    Every call raises UsageError where its words are wrong, and then nothing has changed; HostError where QEMU refuses it; GuestError where
    the guest does.
    """

    def __init__(self, machine: GuestBackend, carrier: LoopRunner) -> None:
        self._machine, self._carrier = machine, carrier

    async def throttle(self, disk: str, *words: str, **limits: str | int) -> Said:
        """Other limits, at once: a profile (`hdd-7200`), `iops-total=100`, `bps-read=20M` and the like, or `off`; `scale=0.5`."""
        return await self.tell("throttle", disk, *words, *_pairs(limits))

    async def delay(self, disk: str, *words: str, **delays: str) -> Said:
        """Each request takes longer: `5ms`, `read=5ms`, `jitter=1ms`, a profile, or `off`."""
        return await self.tell("delay", disk, *words, *_pairs(delays))

    async def inject(self, disk: str, *words: str) -> Said:
        """Requests go wrong: `read=EIO`, `write=ENOSPC,count=3`, `write=lost,range=1M-2M`, `read-only`, or `off`."""
        return await self.tell("inject", disk, *words)

    async def hang(self, disk: str, duration: str) -> Said:
        """No request ends for so long (`5s`); `off` lets them go."""
        return await self.tell("hang", disk, duration)

    async def unplug(self, disk: str, *, surprise: bool = False) -> Said:
        """Take a disk out, with whatever stands on it in the guest; `surprise`: it is dead before the guest hears of it."""
        return await self.tell("unplug", disk, *([SURPRISE] if surprise else []))

    async def plug(self, disk: str) -> Said:
        """Put it in again, with what it held."""
        return await self.tell("plug", disk)

    async def resize(self, disk: str, size: str | int) -> Said:
        """Another size."""
        return await self.tell("resize", disk, str(size))

    async def memory(self, size: str | int = OFF) -> Said:
        """What the guest keeps of its memory; `off` gives it back. Of a guest that was booted cold."""
        return await self.tell("memory", str(size))

    async def cpus(self, count: int | str = OFF) -> Said:
        """How many CPUs stay online; `off` puts all online again."""
        return await self.tell("cpus", str(count))

    async def tell(self, *words: str) -> Said:
        """Any of these, as words."""
        return await self._carrier.do(self._machine.tell(words))

    async def condition(self, disk: str = MACHINE) -> Said:
        """How a disk behaves now; without one the machine: `memory` and `cpus`."""
        return await self._carrier.do(self._machine.said(disk))


def _pairs(given: Mapping[str, str | int]) -> list[str]:
    return [f"{name.replace('_', '-')}={value}" for name, value in given.items()]
