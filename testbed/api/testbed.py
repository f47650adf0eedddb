"""The testbed of the Python API: opened once, it prepares images, kernels and templates, and starts guests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from testbed.api import supervised_guest, topologies
from testbed.api.compare import Comparison, compare_sides
from testbed.api.event_loops import CallerLoop, LoopRunner
from testbed.api.guest_backend import GuestBackend, LocalGuest
from testbed.api.pausable_clock import PausableClock
from testbed.api.topologies import Wanted
from testbed.api.vm import Vm
from testbed.errors import UsageError
from testbed.guest.factory import GuestFactory, open_factory
from testbed.guest.guest import Guest
from testbed.guest.metrics.disk_sampler import sampling_disks
from testbed.guest.setup import apply
from testbed.guest.timeline import run_timeline
from testbed.host import tempdirs
from testbed.host.facts import Host
from testbed.progress import Progress, Silent
from testbed.store.image import Image
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import shipped_table
from testbed.topology import Topology

T = TypeVar("T")
# Whether the caller already has guests, which it must not wait for.
_inside: ContextVar[bool] = ContextVar("inside", default=False)


class Testbed:
    """Host facts, guest image, kernels and templates, each made once; and guests. Made by `open_testbed`."""

    __test__ = False  # tells pytest that this is no test class

    def __init__(self, factory: GuestFactory, runner: LoopRunner, clock: PausableClock, evidence: Path) -> None:
        self._factory, self._runner, self._clock, self._evidence = factory, runner, clock, evidence
        self._numbers = itertools.count(1)
        self.keeps = False  # start guests under supervisors, so that they can be kept
        self._qemu_sha256 = ""

    @property
    def host(self) -> Host:
        """What this machine can do: cores, memory, its QEMU, whether KVM works."""
        return self._factory.host

    @property
    def image(self) -> Image:
        """The guest image: its name and sha256."""
        return self._factory.image

    @property
    def base(self) -> str:
        """The kernel of the table that `compare` uses as base; `patched` is the other one, and the default."""
        return self._factory.table.base

    @property
    def patched(self) -> str:
        return self._factory.table.patched

    def qemu_sha256(self) -> str:
        """Return the SHA-256 of the QEMU binary that runs the guests, in hex."""
        if not self._qemu_sha256:
            with Path(self.host.qemu.path).open("rb") as file:
                self._qemu_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return self._qemu_sha256

    async def kernel(self, spec: str) -> KernelFiles:
        """Return the files of a kernel: a name of the table, `BZIMAGE[:MODULES_FOLDER]`, or `FILE.deb[:FILE.deb]`;
        downloads missing ones.

        :raise UsageError: there is no such kernel. :raise HostError: it cannot be downloaded.
        """
        return await self._runner.do(self._factory.kernel(spec))

    @contextlib.asynccontextmanager
    async def vm(
        self,
        topology: Wanted = topologies.PLAIN,
        *,
        kernel: str | None = None,
        point: str | None = None,
        evidence: Path | None = None,
    ) -> AsyncIterator[Vm]:
        """Start the only guest of a topology, and end it afterwards; arguments and errors as of `vms`."""
        wanted = only_guest(topologies.resolve_point(topology, Path.cwd(), "topology", point))
        async with self.vms(wanted, kernel=kernel, evidence=evidence) as found:
            yield next(iter(found.values()))

    @contextlib.asynccontextmanager
    async def vms(
        self,
        topology: Wanted = topologies.PLAIN,
        *,
        kernel: str | None = None,
        point: str | None = None,
        evidence: Path | None = None,
    ) -> AsyncIterator[dict[str, Vm]]:
        """Start all guests of a topology in parallel, as soon as the host admits them, with their disks, block
        stacks, cgroups and networks; then their timelines start. The guests are ended afterwards.

        `topology`: a path, YAML, or a mapping. `kernel`: for all guests, instead of those in the topology. `point`:
        of its matrix. `evidence`: the folder that gets a folder of logs for each guest.

        :raise TopologyError: with every mistake. :raise HostError: this machine lacks something; says what to do.
        :raise GuestLost: a guest did not get ready. :raise DeviceMismatch: a device is not as its topology describes
        it.
        """
        wanted = topologies.resolve_point(topology, Path.cwd(), "topology", point)
        folder = evidence or self._evidence / f"{next(self._numbers)}"
        async with (
            self.admitted(wanted, "a guest", at_once=_inside.get()),
            self.started(wanted, kernel, folder) as found,
        ):
            before = _inside.set(True)
            try:
                yield found
            finally:
                with contextlib.suppress(ValueError):  # left in another context, where it was not set
                    _inside.reset(before)

    async def compare(
        self,
        body: Callable[[Vm], Awaitable[T]],
        topology: Wanted = topologies.PLAIN,
        *,
        base: str | None = None,
        patched: str | None = None,
        point: str | None = None,
        evidence: Path | None = None,
    ) -> Comparison[T]:
        """Run `body` on two guests that differ only in their kernel; raises as `vms`.

        :raise SideFailed: `body` failed on one of them, or on both.
        """
        wanted = only_guest(topologies.resolve_point(topology, Path.cwd(), "topology", point))
        folder = evidence or self._evidence / f"{next(self._numbers)}"
        kernels = {"base": base or self.base, "patched": patched or self.patched}
        async with (
            self.admitted(wanted, "a comparison", times=len(kernels), at_once=_inside.get()),
            self.sides(wanted, kernels, folder) as vms,
        ):
            return await compare_sides(body, vms, side_by_side=self.host.cores >= len(vms))

    def new_folder(self) -> Path:
        """Return the path of a folder for large files on this machine, which is removed when the testbed is closed."""
        return self._factory.new_folder()

    @contextlib.asynccontextmanager
    async def admitted(
        self, topology: Topology, who: str, *, times: int = 1, at_once: bool = False
    ) -> AsyncIterator[None]:
        """Wait until the host admits the guests of a topology; see `Admission.admitted`."""
        models = tuple(topology.guests.values()) * times
        async with self._factory.admitted(models, who, cores=len(models), at_once=at_once):
            yield

    @contextlib.asynccontextmanager
    async def started(self, topology: Topology, kernel: str | None, evidence: Path) -> AsyncIterator[dict[str, Vm]]:
        """Start the guests of a topology without admission."""
        files = await self._runner.do(self._factory.kernel(kernel or self.patched))
        wanted = topology if kernel is None else _without_kernels(topology)
        if self.keeps:
            async with self._start_supervised(wanted, kernel or self.patched, evidence) as staying:
                yield staying
            return
        async with contextlib.AsyncExitStack() as stack:
            guests = await stack.enter_async_context(self._factory.guests(wanted, files, evidence))
            async with asyncio.TaskGroup() as group:
                built = {name: group.create_task(apply.apply_steps(guest)) for name, guest in guests.items()}
            found: dict[str, Vm] = {}
            for name, guest in guests.items():
                guest.marks.reach(apply.STACK_MARK)
                await stack.enter_async_context(_sampling_and_timeline(guest))
                own = guest.model.kernel
                release = (await self._factory.kernel(own)).release if own else files.release
                backend: GuestBackend = LocalGuest(
                    guest, built[name].result()[0], own or kernel or self.patched, release
                )
                found[name] = Vm(backend, self._runner, self._clock)
            yield found

    @contextlib.asynccontextmanager
    async def _start_supervised(self, topology: Topology, kernel: str, evidence: Path) -> AsyncIterator[dict[str, Vm]]:
        """Start the guests of a topology under supervisors, so that each can be kept."""
        kernels = {name: model.kernel or kernel for name, model in topology.guests.items()}
        async with supervised_guest.start_supervised(
            topology, kernel, kernels, self._factory.folders, evidence, cold=self._factory.cold
        ) as machines:
            yield {name: Vm(backend, self._runner, self._clock) for name, backend in machines.items()}

    @contextlib.asynccontextmanager
    async def sides(
        self, topology: Topology, kernels: Mapping[str, str], evidence: Path
    ) -> AsyncIterator[dict[str, Vm]]:
        """Start the only guest of a topology on several kernels in parallel; `kernels`: by side, as are the guests."""
        async with contextlib.AsyncExitStack() as whole:
            stacks = {side: await whole.enter_async_context(contextlib.AsyncExitStack()) for side in kernels}
            async with asyncio.TaskGroup() as group:
                starts = {
                    side: group.create_task(
                        stacks[side].enter_async_context(self.started(topology, kernel, evidence / side))
                    )
                    for side, kernel in kernels.items()
                }
            yield {side: next(iter(start.result().values())) for side, start in starts.items()}


@contextlib.asynccontextmanager
async def _sampling_and_timeline(guest: Guest) -> AsyncIterator[None]:
    async with sampling_disks(guest), run_timeline(guest):
        yield


def only_guest(topology: Topology) -> Topology:
    """Return the topology. :raise UsageError: it has several guests."""
    if len(topology.guests) != 1:
        raise UsageError(
            f"expected a topology of one guest, this one has {', '.join(topology.guests)}; take all of them with `vms`"
        )
    return topology


def _without_kernels(topology: Topology) -> Topology:
    return topology.model_copy(
        update={"guests": {name: model.model_copy(update={"kernel": None}) for name, model in topology.guests.items()}}
    )


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempdirs.temporary() as folder:
        yield folder


@contextlib.asynccontextmanager
async def open_testbed(
    *, kernels: tuple[str, ...] = (), cold: bool = False, evidence: Path | None = None, progress: Progress | None = None
) -> AsyncIterator[Testbed]:
    """Open the testbed. Makes or downloads a missing guest image and missing `kernels` first, which takes minutes
    the first time.

    `cold`: boot guests instead of cloning templates. `evidence`: a folder for the guests' logs. `progress`: is
    notified of long steps.

    :raise HostError: this machine cannot run it; says what to do. :raise UsageError: there is no such kernel.
    """
    with _folder(evidence) as folder:
        async with open_guests(
            CallerLoop(), PausableClock(), progress or Silent(), folder, kernels=kernels, cold=cold
        ) as found:
            yield found


@contextlib.asynccontextmanager
async def open_guests(
    runner: LoopRunner,
    clock: PausableClock,
    progress: Progress,
    evidence: Path,
    *,
    kernels: tuple[str, ...] = (),
    cold: bool = False,
) -> AsyncIterator[Testbed]:
    """Open the testbed with any loop runner; raises as `open_testbed`."""
    # At least one kernel, because KVM is used only once a kernel has booted on it.
    first = kernels or (shipped_table().patched,)
    async with open_factory(progress, kernels=first, cold=cold) as factory:
        yield Testbed(factory, runner, clock, evidence)
