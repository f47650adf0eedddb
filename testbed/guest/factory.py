"""Everything that guests are made from, opened once: host facts, kernels, image, templates, and the session that owns sockets and scratch.

async with open_lab(progress) as lab:
    kernel = await lab.kernel("debian-6.1")
    async with lab.guest("g0", topology.guests["g0"], kernel, evidence) as guest:
        await guest.run("uname", "-r")
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed.errors import HostError, TemplateError, TestbedError, first_error
from testbed.guest import clock, template
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.guest import Guest, launch
from testbed.guest.launch_spec import LaunchSpec, OnState, ignore_state
from testbed.guest.lifecycle import deadlines
from testbed.guest.session import Session, open_session
from testbed.guest.setup import apply
from testbed.hashing import content_key, file_sha256
from testbed.host import paths
from testbed.host import quota as room
from testbed.host.admission import Admission, Admitted, Claim, OnWait
from testbed.host.facts import NO_SANDBOX, Host
from testbed.host.paths import Folders
from testbed.host.quota import Quota
from testbed.progress import Progress
from testbed.qemu import command_line, jail, probe
from testbed.qemu.command_line import BootFiles, MachineId, Memory
from testbed.qemu.netdev import NO_NETWORKS, NetworkSockets
from testbed.store import cache, checksums, gc, image, initramfs, template_files
from testbed.store.image import Image
from testbed.store.kernels import kernel_files
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import KernelTable, shipped_table
from testbed.store.snapshot_files import Snapshot
from testbed.store.template_files import Template
from testbed.topology import kernel_abilities, trust
from testbed.topology.model import GuestModel, Topology

IMAGE = "bookworm"
# So long is the clock of a guest that was booted compared with ours.
_CLOCK_S = 0.3

# What a guest writes into its folder of evidence.
_LOGS = (
    "argv.txt",
    "console.log",
    "qemu.log",
    "qmp.jsonl",
    "ssh.log",
    "dmesg.txt",
    "stages.jsonl",
    "timeline.jsonl",
    "samples.jsonl",
    "cgroups.jsonl",
)


class GuestFactory:
    """Made by `open_lab`. Safe to use from many tasks at once; what two of them need is made once."""

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
        # Booting keeps a core busy, whatever the guest does later: more at once only make each other late.
        self._booting = asyncio.Semaphore(host.cores)
        self._files: dict[tuple[str, str], BootFiles] = {}
        # Of the cache, what this lab has used and may use again, however long it is open.
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
        """Wait until the host has room for guests that start and end together, and hold it. `guest` and its like start them in any case.

        `cores`: how many the guests keep busy. `on_wait` hears what is waited for; see `Admission.admitted`.
        """
        there = tuple(models)
        memory_bytes = sum(model.memory for model in there)
        claim = Claim(cores=cores, memory_bytes=memory_bytes, guests=len(there), who=f"{who} (pid {os.getpid()})")
        tell = on_wait or (lambda why: self._progress.note(f"{who}: {why}"))
        async with self._admission.admitted(claim, tell, at_once=at_once) as ticket:
            yield ticket

    async def kernel(self, spec: str) -> KernelFiles:
        """The files of a kernel named as on the command line.

        :raise UsageError: it names nothing, or its files are not what they should be. :raise HostError: they cannot be fetched.
        """
        found = await kernel_files.fetch(self.table.resolve(spec), self.folders.cache, self._progress)
        self._needed.add(found.folder)
        return found

    async def prepare(self, model: GuestModel, kernel: KernelFiles) -> None:
        """Make what a guest needs beyond itself, with progress: image, initramfs, template."""
        machine, files = await self._machine(model, kernel)
        if (
            self.cold
            or model.boots_cold
            or (template_files.template_folder(self.folders.cache, machine.key) / cache.META).is_file()
        ):
            return
        async with self.admitted((model,), f"the template of {kernel.name}", cores=1):
            await self.template(machine, files)

    async def _machine(self, model: GuestModel, kernel: KernelFiles) -> tuple[MachineId, BootFiles]:
        trust.check_trusted(model.qemu_args)
        kernel_abilities.check_kernels(model, kernel)
        root = await self._image(model.image)
        files = await self._boot_files(kernel, root)
        return command_line.machine_id(
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
        survivors: Path | None = None,
        on_state: OnState = ignore_state,
    ) -> AsyncIterator[Guest]:
        """A guest that is ready: a clone of its machine's template, or booted cold where that is asked for or all that works.

        `savable`: it may become a snapshot. `survivors`: the disks that are left of one whose power was cut; it takes them over.
        `on_state`: hears how far it is.

        :raise GuestLost: it did not get ready. :raise DeviceMismatch: it is not what the topology says.
        """
        machine, files = await self._machine(model, kernel)
        spec = replace(
            self._spec(name, model, machine, files, logs, wiring),
            savable=savable,
            survivors=survivors,
            on_state=on_state,
        )
        async with contextlib.AsyncExitStack() as stack:
            if self.cold or model.boots_cold:
                guest = await self._boot(stack, spec)
            else:
                guest = await self._clone(stack, spec)
            yield guest

    @contextlib.asynccontextmanager
    async def guests(
        self, topology: Topology, kernel: KernelFiles, logs: Path, *, stacked: bool = True
    ) -> AsyncIterator[dict[str, Guest]]:
        """All guests of a topology, started side by side, on its private networks; with their stacks, unless `stacked` is off.

        A guest whose topology names a kernel runs that one. Raises as `guest`; whatever fails, all of them are gone afterwards.
        """
        folder = self._session.sockets / f"lan-{next(self._numbers)}"
        folder.mkdir(mode=0o700)

        async def start(stack: contextlib.AsyncExitStack, name: str, model: GuestModel) -> Guest:
            own = await self.kernel(model.kernel) if model.kernel else kernel
            wiring = NetworkSockets(folder=folder, guest=name, ends=topology.links[name])
            guest = await stack.enter_async_context(self.guest(name, model, own, logs / name, wiring))
            if stacked:
                await stack.enter_async_context(apply.stack_applied(guest))
            return guest

        async with contextlib.AsyncExitStack() as whole:
            # A stack for each, since they start at once; they are left in reverse order.
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
        """A guest that goes on from a snapshot, on copies of its disks.

        :raise HostError: the snapshot is of another machine: another QEMU, kernel or image. :raise TemplateError: it does not load.
        """
        machine, files = await self._machine(model, kernel)
        if machine.key != snapshot.machine:
            raise HostError(
                f"{snapshot.title}: expected one of this machine, with the same QEMU, kernel and image, got one of another"
            )
        spec = self._spec(name, model, machine, files, logs, wiring)
        async with launch(
            replace(spec, template=snapshot, savable=True, deadlines=deadlines(snapshot.boot_s)), self.key
        ) as guest:
            yield guest

    def new_folder(self) -> Path:
        """The name of a folder for large files, which is gone when the lab is."""
        return self._session.scratch / str(next(self._numbers))

    async def _boot(self, stack: contextlib.AsyncExitStack, spec: LaunchSpec) -> Guest:
        for _ in range(template.TRIES):
            async with contextlib.AsyncExitStack() as once:
                guest = await once.enter_async_context(launch(spec, self.key))
                if await clock.runs_at_host_rate(guest, lambda: asyncio.sleep(_CLOCK_S)):
                    await stack.enter_async_context(once.pop_all())
                    return guest
                if spec.survivors is not None:
                    await guest.hand_over(spec.survivors)
            self._progress.note(
                f"guest {spec.name}: its clock does not go as ours; booting it again{_put_aside(spec.logs)}"
            )
        raise template.wrong_clock_error(spec.name)

    async def _clone(self, stack: contextlib.AsyncExitStack, spec: LaunchSpec) -> Guest:
        async def once() -> Guest:
            found = await self.template(spec.machine, spec.files)
            return await stack.enter_async_context(
                launch(replace(spec, template=found, deadlines=deadlines(found.boot_s)), self.key)
            )

        try:
            return await once()
        except TemplateError as error:
            # Once: a template that was just made and does not load either is a fault to be reported.
            self._progress.note(f"{error}\nmaking the template again{_put_aside(spec.logs)}")
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
        """A guest that boots cold, with folders and an SSH identity of its own."""
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
        """The machine's template, made if the cache does not have it.

        :raise TemplateError: what is there is damaged.
        """
        folder = template_files.template_folder(self.folders.cache, machine.key)

        async def make(unfinished: Path) -> dict[str, Any]:
            host_key = SshKey.new().private
            model = GuestModel.model_validate({"cpus": machine.cpus, "memory": machine.memory_bytes})

            def boot(memory: Memory) -> contextlib.AbstractAsyncContextManager[Guest]:
                spec = self._spec("template", model, machine, files, unfinished / "boot")
                return launch(replace(spec, memory=memory, host_key=host_key), self.key)

            try:
                async with self._booting:
                    with self._progress.task(f"template of {files.bzimage.parent.name}") as task:
                        return await template.save_template(unfinished, boot, host_key, task)
            except TestbedError:
                self._keep_logs(unfinished / "boot")
                raise

        there = (folder / cache.META).is_file()
        self._needed.add(folder)
        await cache.make_once(folder, make, self._progress, f"template of {files.bzimage.parent.name}")
        if not there:
            await asyncio.to_thread(self._keep_within)
        return await asyncio.to_thread(template_files.read_template, folder, machine.memory_bytes)

    def _keep_logs(self, logs: Path) -> None:
        """Of a template that did not boot, as a run of its own: what it is made in is removed."""
        with contextlib.suppress(OSError, HostError):  # of a disk that is full
            kept = paths.new_run_folder(self.folders.runs) / "template"
            shutil.copytree(logs, kept, ignore=lambda _, names: [name for name in names if name not in _LOGS])
            self._progress.note(f"the logs of the template: {kept}")

    def _keep_within(self) -> None:
        """Templates are what a cache grows by: keep it as small as the user wants it."""
        gc.keep_within(self.folders, room.size_limit(room.CACHE_LIMIT), tuple(self._needed))

    async def _image(self, name: str) -> Image:
        if name == self.image.name:
            return self.image
        built = await image.build_image(name, paths.shipped("images"), self.folders.cache, self._progress)
        self._needed.add(built.folder)
        return built

    async def _boot_files(self, kernel: KernelFiles, root: Image) -> BootFiles:
        key = (kernel.sha256, root.sha256)
        if key not in self._files:
            self._files[key] = await self._make_boot_files(kernel, root)
        return self._files[key]

    async def _make_boot_files(self, kernel: KernelFiles, root: Image) -> BootFiles:
        init = (paths.shipped("images") / "guest" / "initramfs-init").read_bytes()
        key = content_key(kernel.sha256, file_sha256(root.busybox), init.hex())
        folder = self.folders.cache / "initramfs" / key

        async def make(unfinished: Path) -> dict[str, Any]:
            archive = initramfs.build(
                init,
                root.busybox.read_bytes(),
                {name: (kernel.folder / "early" / name).read_bytes() for name in kernel.early_modules},
                with_modules_disk=kernel.has_modules,
            )
            (unfinished / "initramfs").write_bytes(archive)
            return {"release": kernel.release, "hashes": {"initramfs": file_sha256(unfinished / "initramfs")}}

        self._needed.add(folder)
        await cache.make_once(folder, make, self._progress, "initramfs")
        await asyncio.to_thread(checksums.verify, folder, ("initramfs",), cache.read_meta(folder).get("hashes"))
        return BootFiles(
            bzimage=kernel.bzimage, initramfs=folder / "initramfs", root=root.root, modules_disk=kernel.modules_disk
        )


def _put_aside(logs: Path) -> str:
    """Keep the logs of a clone that failed from those of the next try; says where they are, if it came so far."""
    files = [logs / name for name in _LOGS if (logs / name).exists()]
    if not files:
        return ""
    kept = logs / "failed-start"
    kept.mkdir(exist_ok=True)
    for log in files:
        log.replace(kept / log.name)
    return f"; the logs of what failed: {kept}"


def warn_if_unconfined(host: Host, progress: Progress) -> None:
    """Say that QEMU has no sandbox, where the caller has it so, and that it cannot be confined.

    :raise HostError: it has none, and nobody said that this is right.
    """
    if not command_line.sandbox_options(host):
        progress.note(
            f"{host.qemu.path} has no sandbox, and {NO_SANDBOX}=1: a guest that takes it over may do what its user may"
        )
    if not host.jail.confined:
        progress.note(
            f"{host.qemu.path} is not confined: a guest that takes it over may {'; '.join(jail.unconfined_parts(host.jail))}"
        )


@contextlib.asynccontextmanager
async def open_factory(
    progress: Progress, *, kernels: tuple[str, ...] = (), cold: bool = False, sharing: int = 1
) -> AsyncIterator[GuestFactory]:
    """A lab with the guest image and `kernels` at hand, all fetched and built side by side where they are missing.

    `sharing`: how many labs share what a run may take of this machine's disks; see `Quota`.

    :raise HostError: this machine cannot run it; says what to do. :raise UsageError: a kernel names nothing.
    """
    folders = paths.folders()
    images = paths.shipped("images")
    table = shipped_table()
    wanted = [table.resolve(spec) for spec in dict.fromkeys(kernels)]
    quota = Quota(room.size_limit(room.RUN_LIMIT), sharing=sharing)
    with open_session(folders) as session:
        try:
            async with asyncio.TaskGroup() as group:
                built = group.create_task(image.build_image(IMAGE, images, folders.cache, progress))
                fetched = [group.create_task(kernel_files.fetch(kernel, folders.cache, progress)) for kernel in wanted]
        except ExceptionGroup as failures:
            raise first_error(failures) from None
        host = await probe.probe(folders.cache, fetched[0].result() if fetched else None, progress)
        warn_if_unconfined(host, progress)
        yield GuestFactory(
            folders=folders,
            session=session,
            host=host,
            table=table,
            image=built.result(),
            progress=progress,
            cold=cold,
            quota=quota,
        )
