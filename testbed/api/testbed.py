"""The testbed, opened once: what guests are made from, and the guests that are started from it."""

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
# Whether whoever asks is inside of guests that it has already.
_inside: ContextVar[bool] = ContextVar("inside", default=False)


class Testbed:
    """Host facts, guest image, kernels and templates, each made once; and guests. Made by `open_testbed`."""

    __test__ = False  # no class of tests, whatever pytest thinks of its name

    def __init__(self, factory: GuestFactory, carrier: LoopRunner, patience: PausableClock, evidence: Path) -> None:
        self._factory, self._carrier, self._patience, self._evidence = factory, carrier, patience, evidence
        self._numbers = itertools.count(1)
        self.keeps = False  # whether guests are started so that they can stay
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
        """The kernel of the table that `compare` takes as base; `patched` is the other, and the one where nothing is said."""
        return self._factory.table.base

    @property
    def patched(self) -> str:
        return self._factory.table.patched

    def qemu_sha256(self) -> str:
        """SHA-256 of the QEMU that runs the guests, hex."""
        if not self._qemu_sha256:
            with Path(self.host.qemu.path).open("rb") as file:
                self._qemu_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return self._qemu_sha256

    async def kernel(self, spec: str) -> KernelFiles:
        """The files of a kernel: a name of the table, `BZIMAGE[:MODULES_FOLDER]`, or `FILE.deb[:FILE.deb]`. Fetched where it is missing.

        :raise UsageError: it names nothing. :raise HostError: it cannot be fetched.
        """
        return await self._carrier.do(self._factory.kernel(spec))

    @contextlib.asynccontextmanager
    async def vm(
        self,
        topology: Wanted = topologies.PLAIN,
        *,
        kernel: str | None = None,
        point: str | None = None,
        evidence: Path | None = None,
    ) -> AsyncIterator[Vm]:
        """A fresh guest with all that a topology says of it; gone afterwards. As `vms`, of a topology with one guest."""
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
        """All guests of a topology, started side by side as soon as the host has room for them, with their disks, stacks, control groups
        and networks; their timelines begin. Gone afterwards.

        `topology`: a path, YAML, or a mapping. `kernel`: of all guests, over what the topology says. `point`: of its matrix. `evidence`:
        the folder of their logs, one for each guest in it.

        :raise TopologyError: with every mistake. :raise HostError: this machine lacks something; says what to do.
        :raise GuestLost: one did not get ready. :raise DeviceMismatch: one is not what its topology says.
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
                with contextlib.suppress(ValueError):  # left in another context, which never knew
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
        """Run `body` on two guests that differ in nothing but their kernel; raises as `vms`.

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
        """The name of a folder of this machine for large files, which is gone when the testbed is closed."""
        return self._factory.new_folder()

    # For the plugin ------------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def admitted(
        self, topology: Topology, who: str, *, times: int = 1, at_once: bool = False
    ) -> AsyncIterator[None]:
        """Wait until the host has room for the guests of a topology; see `Admission.admitted`."""
        models = tuple(topology.guests.values()) * times
        async with self._factory.admitted(models, who, cores=len(models), at_once=at_once):
            yield

    @contextlib.asynccontextmanager
    async def started(self, topology: Topology, kernel: str | None, evidence: Path) -> AsyncIterator[dict[str, Vm]]:
        """The guests of a topology, whether there is room for them or not."""
        files = await self._carrier.do(self._factory.kernel(kernel or self.patched))
        wanted = topology if kernel is None else _without_kernels(topology)
        if self.keeps:
            async with self._kept(wanted, kernel or self.patched, evidence) as staying:
                yield staying
            return
        async with contextlib.AsyncExitStack() as stack:
            guests = await stack.enter_async_context(self._factory.guests(wanted, files, evidence))
            async with asyncio.TaskGroup() as group:
                built = {name: group.create_task(apply.apply_steps(guest)) for name, guest in guests.items()}
            found: dict[str, Vm] = {}
            for name, guest in guests.items():
                guest.marks.reach(apply.STACK_MARK)
                await stack.enter_async_context(_working(guest))
                own = guest.model.kernel
                release = (await self._factory.kernel(own)).release if own else files.release
                machine: GuestBackend = LocalGuest(
                    guest, built[name].result()[0], own or kernel or self.patched, release
                )
                found[name] = Vm(machine, self._carrier, self._patience)
            yield found

    @contextlib.asynccontextmanager
    async def _kept(self, topology: Topology, kernel: str, evidence: Path) -> AsyncIterator[dict[str, Vm]]:
        """The guests of a topology, of which each can stay."""
        kernels = {name: model.kernel or kernel for name, model in topology.guests.items()}
        async with supervised_guest.start_supervised(
            topology, kernel, kernels, self._factory.folders, evidence, cold=self._factory.cold
        ) as machines:
            yield {name: Vm(machine, self._carrier, self._patience) for name, machine in machines.items()}

    @contextlib.asynccontextmanager
    async def sides(
        self, topology: Topology, kernels: Mapping[str, str], evidence: Path
    ) -> AsyncIterator[dict[str, Vm]]:
        """The only guest of a topology on each of some kernels, by what these are called; all are started at once."""
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
async def _working(guest: Guest) -> AsyncIterator[None]:
    async with sampling_disks(guest), run_timeline(guest):
        yield


def only_guest(topology: Topology) -> Topology:
    """A topology of one guest.

    :raise UsageError: it has several.
    """
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
    """The testbed. What is missing of the guest image and of `kernels` is made or fetched first, which the first time takes minutes.

    `cold`: boot guests instead of cloning templates. `evidence`: a folder that keeps the guests' logs. `progress`: hears what takes long.

    :raise HostError: this machine cannot run it; says what to do. :raise UsageError: a kernel names nothing.
    """
    with _folder(evidence) as folder:
        async with open_guests(
            CallerLoop(), PausableClock(), progress or Silent(), folder, kernels=kernels, cold=cold
        ) as found:
            yield found


@contextlib.asynccontextmanager
async def open_guests(
    carrier: LoopRunner,
    patience: PausableClock,
    progress: Progress,
    evidence: Path,
    *,
    kernels: tuple[str, ...] = (),
    cold: bool = False,
) -> AsyncIterator[Testbed]:
    """The testbed on any carrier; raises as `open_testbed`."""
    # A kernel at least: KVM is used where one has booted on it.
    first = kernels or (shipped_table().patched,)
    async with open_factory(progress, kernels=first, cold=cold) as factory:
        yield Testbed(factory, carrier, patience, evidence)
