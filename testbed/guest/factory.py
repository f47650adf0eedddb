"""Starts guests from what is opened once: host facts, kernels, the image, templates, and a session.

async with open_factory(progress) as factory:
    kernel = await factory.kernel("debian-6.1")
    async with factory.guest("g0", topology.guests["g0"], kernel, logs) as guest:
        await guest.run("uname", "-r")
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path

from testbed.errors import HostError, TemplateError, first_error
from testbed.guest import boot_files, clock, log_files, template
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.deadlines import deadlines
from testbed.guest.guest import Guest
from testbed.guest.launch import launch
from testbed.guest.launch_spec import LaunchSpec, OnState, ignore_state
from testbed.guest.session import Session, open_session
from testbed.host import paths, quota
from testbed.host.admission import Admission, Admitted, Claim, OnWait
from testbed.host.facts import Host
from testbed.host.paths import Folders
from testbed.host.quota import Quota
from testbed.progress import Progress
from testbed.qemu import jail, probe
from testbed.qemu.command_line import BootFiles
from testbed.qemu.machine_id import MachineId, machine_id
from testbed.qemu.netdev import NO_NETWORKS, NetworkSockets
from testbed.store import cache, gc, image, template_files
from testbed.store.image import Image
from testbed.store.kernels import kernel_files
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import KernelTable, shipped_table
from testbed.store.snapshot_files import Snapshot
from testbed.store.template_files import Template
from testbed.topology import kernel_abilities, trust
from testbed.topology.model import GuestModel, Topology

IMAGE = "bookworm"
_CLOCK_S = 0.3  # how long a booted guest's clock is compared with the host's


class GuestFactory:
    """Starts guests; made by `open_factory`. Tasks may use it concurrently; what two of them need is made once."""

    def __init__(
        self,
        *,
        folders: Folders,
        session: Session,
        host: Host,
        table: KernelTable,
        image: Image,
        progress: Progress,
        cold: bool,
        quota: Quota,
    ) -> None:
        self.folders = folders
        self.host = host
        self.table = table
        self.image = image
        self.cold = cold or not host.qemu.warm_clones
        self._session = session
        self._progress = progress
        self.key = SshKey.new()
        self._numbers = itertools.count()
        # A boot keeps one core busy, whatever the guest does later: with more boots than cores, each takes longer.
        self._booting = asyncio.Semaphore(host.cores)
        self._boot_files: dict[tuple[str, str], BootFiles] = {}
        # Entries of the cache that this factory has used and may use again: garbage collection keeps them.
        self._needed = {image.folder}
        self._admission = Admission(folders.admission, cores=host.cores, memory_bytes=host.memory_bytes)
        self._quota = quota

    @contextlib.asynccontextmanager
    async def admitted(
        self,
        models: Iterable[GuestModel],
        who: str,
        *,
        cores: int,
        on_wait: OnWait | None = None,
        at_once: bool = False,
    ) -> AsyncIterator[Admitted]:
        """Wait until the host has room for guests that start and end together, and reserve it.

        `guest` and `guests` do not wait.

        `cores`: how many the guests keep busy. `on_wait` is called with what the wait is for; see `Admission.admitted`.
        """
        found = tuple(models)
        memory_bytes = sum(model.memory for model in found)
        claim = Claim(cores=cores, memory_bytes=memory_bytes, guests=len(found), who=f"{who} (pid {os.getpid()})")
        report = on_wait or (lambda why: self._progress.note(f"{who}: {why}"))
        async with self._admission.admitted(claim, report, at_once=at_once) as ticket:
            yield ticket

    async def kernel(self, spec: str) -> KernelFiles:
        """Return the files of a kernel that is named as on the command line; download them if they are missing.

        :raise UsageError: there is no such kernel, or its files have wrong checksums.
        :raise HostError: its files cannot be downloaded.
        """
        files = await kernel_files.fetch(self.table.resolve(spec), self.folders.cache, self._progress)
        self._needed.add(files.folder)
        return files

    async def prepare(self, model: GuestModel, kernel: KernelFiles) -> None:
        """Make what a guest is started from, with progress: image, initramfs, template."""
        machine, files = await self._machine(model, kernel)
        folder = template_files.template_folder(self.folders.cache, machine.key)
        if self.cold or model.boots_cold or (folder / cache.META).is_file():
            return
        async with self.admitted((model,), f"the template of {kernel.name}", cores=1):
            await self.template(machine, files)

    async def _machine(self, model: GuestModel, kernel: KernelFiles) -> tuple[MachineId, BootFiles]:
        trust.check_trusted(model.qemu_args)
        kernel_abilities.check_kernels(model, kernel)
        root = await self._image(model.image)
        files = await self._files(kernel, root)
        return machine_id(
            self.host, model, kernel=kernel.sha256, image=root.sha256, initramfs=files.initramfs.parent.name
        ), files

    @contextlib.asynccontextmanager
    async def guest(
        self,
        name: str,
        model: GuestModel,
        kernel: KernelFiles,
        logs: Path,
        wiring: NetworkSockets = NO_NETWORKS,
        *,
        savable: bool = False,
        surviving_disks: Path | None = None,
        on_state: OnState = ignore_state,
    ) -> AsyncIterator[Guest]:
        """Start a guest and yield it when it is ready: a clone of a template, or booted cold if requested or necessary.

        `savable`: it may become a snapshot. `surviving_disks`: a folder with the disks of a guest whose power was cut,
        which become its own. `on_state` is called with each state that it reaches.

        :raise GuestLost: it did not get ready. :raise DeviceMismatch: its disks are not those of the topology.
        """
        machine, files = await self._machine(model, kernel)
        spec = replace(
            self._spec(name, model, machine, files, logs, wiring),
            savable=savable,
            surviving_disks=surviving_disks,
            on_state=on_state,
        )
        async with contextlib.AsyncExitStack() as stack:
            if self.cold or model.boots_cold:
                guest = await self._boot(stack, spec)
            else:
                guest = await self._clone(stack, spec)
            yield guest

    @contextlib.asynccontextmanager
    async def guests(self, topology: Topology, kernel: KernelFiles, logs: Path) -> AsyncIterator[dict[str, Guest]]:
        """Start all guests of a topology in parallel, on its private networks.

        A guest whose topology names a kernel runs that one. Raises as `guest`; if one fails, all of them are removed.
        """
        folder = self._session.sockets / f"lan-{next(self._numbers)}"
        folder.mkdir(mode=0o700)

        async def start(stack: contextlib.AsyncExitStack, name: str, model: GuestModel) -> Guest:
            own = await self.kernel(model.kernel) if model.kernel else kernel
            wiring = NetworkSockets(folder=folder, guest=name, ends=topology.links[name])
            return await stack.enter_async_context(self.guest(name, model, own, logs / name, wiring))

        async with contextlib.AsyncExitStack() as whole:
            # One exit stack per guest, since they start concurrently; the stacks are closed in reverse order.
            stacks = {name: await whole.enter_async_context(contextlib.AsyncExitStack()) for name in topology.guests}
            async with asyncio.TaskGroup() as group:
                tasks = {
                    name: group.create_task(start(stacks[name], name, model)) for name, model in topology.guests.items()
                }
            yield {name: task.result() for name, task in tasks.items()}

    @contextlib.asynccontextmanager
    async def restored(
        self, name: str, model: GuestModel, kernel: KernelFiles, logs: Path, wiring: NetworkSockets, snapshot: Snapshot
    ) -> AsyncIterator[Guest]:
        """Restore a guest from a snapshot, on copies of its disks, and yield it.

        :raise HostError: the snapshot is of another machine: another QEMU, kernel or image.
        :raise TemplateError: it does not load.
        """
        machine, files = await self._machine(model, kernel)
        if machine.key != snapshot.machine:
            raise HostError(
                f"{snapshot.title}: expected one of this machine, with the same QEMU, kernel and image, got one of"
                " another"
            )
        spec = replace(
            self._spec(name, model, machine, files, logs, wiring),
            template=snapshot,
            savable=True,
            deadlines=deadlines(snapshot.boot_s),
        )
        async with launch(spec, self.key) as guest:
            yield guest

    def new_folder(self) -> Path:
        """Return an unused path for a folder of large files, which is removed when the factory is closed."""
        return self._session.scratch / str(next(self._numbers))

    async def _boot(self, stack: contextlib.AsyncExitStack, spec: LaunchSpec) -> Guest:
        """Boot a guest cold; again if its clock is wrong."""
        for _ in range(template.TRIES):
            async with contextlib.AsyncExitStack() as once:
                guest = await once.enter_async_context(launch(spec, self.key))
                if await clock.runs_at_host_rate(guest, lambda: asyncio.sleep(_CLOCK_S)):
                    await stack.enter_async_context(once.pop_all())
                    return guest
                if spec.surviving_disks is not None:
                    await guest.move_disks_to(spec.surviving_disks)
            self._progress.note(
                f"guest {spec.name}: its clock does not go as ours; booting it again{log_files.set_aside(spec.logs)}"
            )
        raise template.wrong_clock_error(spec.name)

    async def _clone(self, stack: contextlib.AsyncExitStack, spec: LaunchSpec) -> Guest:
        """Clone a guest from its machine's template; make the template again, once, if it does not load."""

        async def once() -> Guest:
            found = await self.template(spec.machine, spec.files)
            return await stack.enter_async_context(
                launch(replace(spec, template=found, deadlines=deadlines(found.boot_s)), self.key)
            )

        try:
            return await once()
        except TemplateError as error:
            # A new template that does not load either is an error to report.
            self._progress.note(f"{error}\nmaking the template again{log_files.set_aside(spec.logs)}")
            template_files.remove_template(template_files.template_folder(self.folders.cache, spec.machine.key))
        return await once()

    def _spec(
        self,
        name: str,
        model: GuestModel,
        machine: MachineId,
        files: BootFiles,
        logs: Path,
        wiring: NetworkSockets = NO_NETWORKS,
    ) -> LaunchSpec:
        """Return the spec of a guest that boots cold, with its own folders and SSH identity."""
        number = str(next(self._numbers))
        return LaunchSpec(
            name=name,
            host=self.host,
            machine=machine,
            files=files,
            model=model,
            deadlines=deadlines(None),
            sockets=self._session.sockets / number,
            scratch=self._session.scratch / number,
            logs=logs,
            host_key=SshKey.new().private,
            wiring=wiring,
            quota=self._quota,
        )

    async def template(self, machine: MachineId, files: BootFiles) -> Template:
        """Return the template of a machine; make it if it is not in the cache.

        :raise TemplateError: the template in the cache is damaged.
        """

        def boot_spec(logs: Path) -> LaunchSpec:
            return self._spec("template", template.diskless_model(machine), machine, files, logs)

        folder = template_files.template_folder(self.folders.cache, machine.key)
        title = f"template of {files.bzimage.parent.name}"
        self._needed.add(folder)
        was_there = (folder / cache.META).is_file()
        maker = template.TemplateMaker(
            boot_spec=boot_spec, key=self.key, booting=self._booting, progress=self._progress, runs=self.folders.runs
        )
        await cache.make_once(folder, lambda unfinished: maker.make(unfinished, title), self._progress, title)
        if not was_there:
            await asyncio.to_thread(self._collect_garbage)
        return await asyncio.to_thread(template_files.read_template, folder, machine.memory_bytes)

    def _collect_garbage(self) -> None:
        """Keep the cache within the user's limit; templates are what it grows by."""
        gc.shrink_cache(self.folders, quota.size_limit(quota.CACHE_LIMIT), tuple(self._needed))

    async def _image(self, name: str) -> Image:
        if name == self.image.name:
            return self.image
        built = await image.build_image(name, paths.shipped("images"), self.folders.cache, self._progress)
        self._needed.add(built.folder)
        return built

    async def _files(self, kernel: KernelFiles, root: Image) -> BootFiles:
        key = (kernel.sha256, root.sha256)
        if key not in self._boot_files:
            self._needed.add(boot_files.initramfs_folder(kernel, root, self.folders.cache))
            self._boot_files[key] = await boot_files.make_boot_files(kernel, root, self.folders.cache, self._progress)
        return self._boot_files[key]


@contextlib.asynccontextmanager
async def open_factory(
    progress: Progress, *, kernels: tuple[str, ...] = (), cold: bool = False, sharing: int = 1
) -> AsyncIterator[GuestFactory]:
    """Open a factory with the guest image and `kernels`; what is missing of them is downloaded and built in parallel.

    `sharing`: how many factories share the disk quota of one run; see `Quota`.

    :raise HostError: this machine cannot run guests. :raise UsageError: there is no such kernel.
    """
    folders = paths.folders()
    images = paths.shipped("images")
    table = shipped_table()
    found = [table.resolve(spec) for spec in dict.fromkeys(kernels)]
    run_quota = Quota(quota.size_limit(quota.RUN_LIMIT), sharing=sharing)
    with open_session(folders) as session:
        try:
            async with asyncio.TaskGroup() as group:
                built = group.create_task(image.build_image(IMAGE, images, folders.cache, progress))
                fetched = [group.create_task(kernel_files.fetch(kernel, folders.cache, progress)) for kernel in found]
        except ExceptionGroup as failures:
            raise first_error(failures) from None
        host = await probe.probe(folders.cache, fetched[0].result() if fetched else None, progress)
        jail.warn_if_unconfined(host, progress)
        yield GuestFactory(
            folders=folders,
            session=session,
            host=host,
            table=table,
            image=built.result(),
            progress=progress,
            cold=cold,
            quota=run_quota,
        )
