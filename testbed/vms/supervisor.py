"""Supervises one VM: keeps its guest running after the launching command has ended, and serves the commands that come
later.

Each VM has its own supervisor process, which owns the VM's QEMU: when one of the two ends, for whatever reason, so does
the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from testbed.errors import GuestLost, TestbedError, UsageError
from testbed.guest import snapshot
from testbed.guest.factory import GuestFactory, open_factory
from testbed.guest.guest import Guest
from testbed.guest.metrics.disk_sampler import sampling_disks
from testbed.guest.setup import apply
from testbed.guest.timeline import run_timeline
from testbed.host import eventlog, paths, registry
from testbed.host.registry import VmRecord
from testbed.progress import Silent
from testbed.qemu.netdev import NetworkSockets
from testbed.store import snapshot_files
from testbed.text import parse_json
from testbed.topology import trust
from testbed.topology.model import GuestModel, Topology
from testbed.vms import control, ssh_config
from testbed.vms.control import ControlServer, Reply, Verb

# Reports to the launching process: {"stage": ...} or {"note": TEXT}, and at last {"ready": RECORD} or {"error": TEXT}.
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """How to launch one VM. `topology`: the whole file, as JSON; `networks`: folder of the sockets of its guests;
    `evidence`: folder of the guest's logs; `snapshot`: folder of the snapshot to restore. `at_once`: without waiting
    for admission. `sharing`: how many VMs that are launched together share a run's disk quota. `trusted`: whether the
    `qemu-args` are trusted, which the topology's JSON does not say.
    """

    name: str
    topology: dict[str, Any]
    file: str
    point: str
    guest: str
    kernel: str
    networks: str
    evidence: str
    cold: bool
    snapshot: str | None = None
    at_once: bool = False
    sharing: int = 1
    trusted: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def log(self) -> Path:
        """The supervisor's own log file."""
        return Path(self.evidence) / "supervisor.log"

    @classmethod
    def from_json(cls, text: str) -> VmSpec:
        return cls(**parse_json(text))


class _Notes(Silent):
    """Progress whose notes are reported to the launching process."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def note(self, text: str) -> None:
        self._report({"note": text})


async def supervise(spec: VmSpec, report: Report) -> int:
    """Supervise a VM until `down`; returns the exit code of the process."""
    folders = paths.folders()
    try:
        with eventlog.write_events_to(Path(spec.evidence)), registry.claim_name(folders, spec.name) as folder:
            async with open_factory(
                _Notes(report), kernels=(spec.kernel,), cold=spec.cold, sharing=spec.sharing
            ) as factory:
                vm = Supervisor(spec, folder, factory, report)
                async with control.listen(folder / "control", vm.answer):
                    await vm.run()
    except TestbedError as error:
        if os.environ.get("TESTBED_DEBUG"):
            traceback.print_exc()  # into the supervisor's log
        report({"error": str(error), "code": error.code})
        return 1
    return 0


class Supervisor:
    """The supervisor of one VM: its guest, its record in the registry, and the verbs that end or replace the guest."""

    def __init__(self, spec: VmSpec, folder: Path, factory: GuestFactory, report: Report) -> None:
        self._spec, self._folder, self._factory, self._report = spec, folder, factory, report
        self._topology = Topology.model_validate(spec.topology)
        self._model: GuestModel = self._topology.guests[spec.guest]
        if spec.trusted:
            self._model = self._model.model_copy(update={"qemu_args": trust.trusted_args(self._model.qemu_args)})
        self._guest: Guest | None = None
        self._surviving_disks: Path | None = None  # folder of the disks of the previous guest, whose power was cut
        self._stop_guest = asyncio.Event()  # asks for the guest's end: to end the VM, or to start another guest
        self._is_ending = False
        self._was_ready = False
        self._settled = asyncio.Event()  # the guest is ready, or lost
        self._verbs: dict[str, Verb] = {
            "down": lambda _: self._down(),
            "snapshot": lambda request: self._snapshot(Path(request["folder"])),
            "restore": lambda request: self._restore(str(request["folder"])),
            "power-cut": lambda request: self._power_cut(share=float(request["share"]), seed=int(request["seed"])),
        }
        self._control = ControlServer(spec.name, self._ready)
        self._record = VmRecord(
            name=spec.name,
            state=registry.STARTING,
            topology=spec.file,
            point=spec.point,
            guest=spec.guest,
            kernel=spec.kernel,
            release="",
            memory_bytes=self._model.memory,
            cpus=self._model.cpus,
            disks=tuple(self._model.disks),
            loops=tuple(self._model.loops),
            evidence=spec.evidence,
            networks=spec.networks,
            supervisor=os.getpid(),
            since=time.time(),
        )
        self._update_record()

    def _update_record(self, **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        registry.write_record(self._folder, self._record)

    def _on_wait(self, why: str) -> None:
        self._report({"note": why})

    async def run(self) -> None:
        """Run guests, one after the other, until `down`. The record says so meanwhile where the guest is lost.

        :raise TestbedError: the first guest did not get ready.
        """
        while True:
            running = asyncio.create_task(self._run_guest())
            stop = asyncio.create_task(self._stop_guest.wait())
            try:
                await asyncio.wait((running, stop), return_when=asyncio.FIRST_COMPLETED)
                if running.done() and not self._was_ready:
                    return running.result()
                if running.done() and not self._stop_guest.is_set():
                    self._update_record(state=registry.LOST, why=_why(running), resume_with="")
                    self._settled.set()
                    await stop
            finally:
                # Also when we are cancelled. If this were left to the end of the event loop, a subprocess that is just
                # being started would hang it: asyncio.run cancels the internal tasks by which that start would end
                # (seen with Python 3.11).
                running.cancel()
                stop.cancel()
                await asyncio.gather(running, stop, return_exceptions=True)
            self._stop_guest.clear()
            if self._is_ending:
                return None

    async def _run_guest(self) -> None:
        spec = self._spec
        kernel = await self._factory.kernel(spec.kernel)
        self._update_record(release=kernel.release)
        self._report({"stage": "starting"})
        Path(spec.networks).mkdir(mode=0o700, exist_ok=True)
        wiring = NetworkSockets(folder=Path(spec.networks), guest=spec.guest, ends=self._topology.links[spec.guest])
        launch = (spec.name, self._model, kernel, Path(spec.evidence), wiring)
        surviving_disks, self._surviving_disks = self._surviving_disks, None
        saved = snapshot_files.read_snapshot(Path(spec.snapshot)) if spec.snapshot and surviving_disks is None else None
        async with (
            self._factory.admitted(
                (self._model,), spec.name, cores=1, on_wait=self._on_wait, at_once=spec.at_once
            ) as ticket,
            self._factory.restored(*launch, saved)
            if saved
            else self._factory.guest(*launch, savable=True, surviving_disks=surviving_disks) as guest,
            control.listen(
                self._folder / "console", lambda reader, writer: control.stream_console(guest, reader, writer)
            ),
            control.serve_ssh_connections(self._folder, guest),
            apply.stack_applied(guest, built=saved is not None) as stack,
        ):
            self._guest = guest
            guest.hardware.errors.on_stop = self._record_stopped
            limit_s = guest.deadlines.command_s
            ssh_config.write_ssh_files(
                self._folder, spec.name, self._factory.key.openssh, guest.host_key.public, connect_s=limit_s
            )
            guest.on_disks_changed = lambda: self._update_record(
                devices=stack.devices | {name: disk.path for name, disk in guest.disks.items()}
            )
            self._update_record(state=registry.READY, qemu=guest.pid, devices=stack.devices)
            self._report({"ready": asdict(self._record)})
            self._was_ready = True
            ticket.release_cores()
            self._settled.set()
            async with sampling_disks(guest), run_timeline(guest):
                raise GuestLost(guest.name, guest.state.value, await guest.lost(), guest.console.tail())

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request on the control socket."""
        await control.answer_request(self._spec.name, {**self._control.verbs, **self._verbs}, reader, writer)
        self._record_stopped()

    def _record_stopped(self) -> None:
        """Record that the guest is stopped at a disk error, or runs again; not while a verb stops it for a moment."""
        if self._guest is None or self._record.state != registry.READY or self._control.exclusive.locked():
            return
        why = self._guest.hardware.errors.stopped
        if why != self._record.why:
            self._update_record(why=why, resume_with=f"testbed resume {self._spec.name}" if why else "")

    def _ready(self) -> Guest:
        if self._guest is None or self._record.state != registry.READY:
            raise TestbedError(
                f"{self._spec.name} is {self._record.state}{f': {self._record.why}' if self._record.why else ''}"
            )
        return self._guest

    async def _down(self) -> Reply:
        self._is_ending = True
        self._stop_guest.set()
        return {}

    async def _snapshot(self, folder: Path) -> Reply:
        """Save the guest as a snapshot in a new folder."""
        async with self._control.exclusive, self._control.agent_lock:
            guest = self._ready()
            if folder.exists():
                raise UsageError(
                    f"{self._spec.name} has a snapshot {folder.name} already; choose another name,"
                    " or remove it with --rm"
                )
            if self._record.resume_with:
                raise UsageError(registry.stopped_message(self._record))
            await snapshot.save_snapshot(guest, folder, asdict(self._spec))
        return {}

    async def _restore(self, folder: str) -> Reply:
        """Replace the guest by that of a snapshot, whether it is ready or lost."""
        async with self._control.exclusive:
            self._spec = replace(self._spec, snapshot=folder)
            await self._replace_guest()
        return {}

    async def _power_cut(self, *, share: float, seed: int) -> Reply:
        """Cut the guest's power, and boot it again on what its disks hold then."""
        async with self._control.exclusive:
            survivors = self._factory.new_folder()
            lost = await self._ready().cut_power(survivors, share=share, seed=seed)
            self._surviving_disks = survivors
            await self._replace_guest()
        return {"lost_blocks": lost}

    async def _replace_guest(self) -> None:
        """End the guest, and wait until the next one is ready.

        :raise TestbedError: it does not get ready.
        """
        self._update_record(state=registry.STARTING, why="", resume_with="")
        self._settled.clear()
        self._stop_guest.set()
        await self._settled.wait()
        self._ready()


def _why(ended: asyncio.Task[None]) -> str:
    error = ended.exception()
    return error.why if isinstance(error, GuestLost) else str(error)
