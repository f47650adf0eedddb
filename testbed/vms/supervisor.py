"""Keeps one guest after the command that started it has ended, and answers the commands that come later.

Every guest that stays has a supervisor of its own, a process that owns its QEMU: when one ends, however it ends, so does the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import traceback
from collections.abc import Awaitable, Callable
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
from testbed.vms.control import ControlServer

# Tells whoever started the supervisor: {"stage": ...} or {"note": TEXT}, and at last {"ready": RECORD} or {"error": TEXT}.
Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """One guest to keep. `topology`: the whole file's, as JSON; `networks`: the folder of its guests' sockets; `evidence`: of its logs;
    `snapshot`: the folder of one to go on from. `at_once`: whether the host has room or not. `sharing`: how many guests that are started
    together share what a run may take of this machine's disks. `trusted`: whether its `qemu-args` are, which JSON does not say.
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
        """What the supervisor itself has to say."""
        return Path(self.evidence) / "supervisor.log"

    @classmethod
    def from_json(cls, text: str) -> VmSpec:
        return cls(**parse_json(text))


class _Notes(Silent):
    """Remarks are told to whoever started the supervisor."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def note(self, text: str) -> None:
        self._say({"note": text})


async def supervise(spec: VmSpec, say: Say) -> int:
    """Keep the guest until somebody ends it; the exit code of its process."""
    folders = paths.folders()
    try:
        with eventlog.write_events_to(Path(spec.evidence)), registry.claim_name(folders, spec.name) as folder:
            async with open_factory(
                _Notes(say), kernels=(spec.kernel,), cold=spec.cold, sharing=spec.sharing
            ) as factory:
                keeper = Supervisor(spec, folder, factory, say)
                async with control.listen(folder / "control", keeper.answer):
                    await keeper.keep()
    except TestbedError as error:
        if os.environ.get("TESTBED_DEBUG"):
            traceback.print_exc()  # into its log
        say({"error": str(error), "code": error.code})
        return 1
    return 0


class Supervisor:
    """One guest that stays."""

    def __init__(self, spec: VmSpec, folder: Path, factory: GuestFactory, say: Say) -> None:
        self._spec, self._folder, self._factory, self._say = spec, folder, factory, say
        self._topology = Topology.model_validate(spec.topology)
        self._model: GuestModel = self._topology.guests[spec.guest]
        if spec.trusted:
            self._model = self._model.model_copy(update={"qemu_args": trust.trusted_args(self._model.qemu_args)})
        self._guest: Guest | None = None
        self._surviving_disks: Path | None = None  # the disks of the one before, whose power was cut
        self._asked = asyncio.Event()  # to end, or to go on from a snapshot
        self._ends = False
        self._was_ready = False
        self._settled = asyncio.Event()  # ready, or lost
        self._verbs: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "down": self._down,
            "snapshot": self._snapshot,
            "restore": self._restore,
            "power-cut": self._power_cut,
        }
        self._desk = ControlServer(spec.name, self._ready)
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
        self._note()

    def _note(self, **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        registry.write_record(self._folder, self._record)

    def _wait(self, why: str) -> None:
        self._say({"note": why})

    # Its life ---------------------------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Start the guest and keep it until it is told to go; a guest that is lost is remembered until then.

        :raise TestbedError: it did not get ready.
        """
        while True:
            living = asyncio.create_task(self._live())
            asked = asyncio.create_task(self._asked.wait())
            try:
                await asyncio.wait((living, asked), return_when=asyncio.FIRST_COMPLETED)
                if living.done() and not self._was_ready:
                    return living.result()
                if living.done() and not self._asked.is_set():
                    self._note(state=registry.LOST, why=_why(living), resume_with="")
                    self._settled.set()
                    await asked
            finally:
                # Also when we are cancelled. Left to the end of the loop, a program that is being started would hang it: asyncio.run
                # cancels the tasks of asyncio's own by which that start would end (seen with Python 3.11).
                living.cancel()
                asked.cancel()
                await asyncio.gather(living, asked, return_exceptions=True)
            self._asked.clear()
            if self._ends:
                return None

    async def _live(self) -> None:
        spec = self._spec
        kernel = await self._factory.kernel(spec.kernel)
        self._note(release=kernel.release)
        self._say({"stage": "starting"})
        Path(spec.networks).mkdir(mode=0o700, exist_ok=True)
        wiring = NetworkSockets(folder=Path(spec.networks), guest=spec.guest, ends=self._topology.links[spec.guest])
        started = (spec.name, self._model, kernel, Path(spec.evidence), wiring)
        surviving_disks, self._surviving_disks = self._surviving_disks, None
        saved = snapshot_files.read_snapshot(Path(spec.snapshot)) if spec.snapshot and surviving_disks is None else None
        async with (
            self._factory.admitted(
                (self._model,), spec.name, cores=1, on_wait=self._wait, at_once=spec.at_once
            ) as ticket,
            self._factory.restored(*started, saved)
            if saved
            else self._factory.guest(*started, savable=True, surviving_disks=surviving_disks) as guest,
            control.listen(
                self._folder / "console", lambda reader, writer: control.stream_console(guest, reader, writer)
            ),
            control.serve_ssh_connections(self._folder, guest),
            apply.stack_applied(guest, built=saved is not None) as made,
        ):
            self._guest = guest
            guest.hardware.errors.on_stop = self._note_still
            limit_s = guest.deadlines.command_s
            ssh_config.write_ssh_files(
                self._folder, spec.name, self._factory.key.openssh, guest.host_key.public, connect_s=limit_s
            )
            guest.on_disks_changed = lambda: self._note(
                devices=made.devices | {name: disk.path for name, disk in guest.disks.items()}
            )
            self._note(state=registry.READY, qemu=guest.pid, devices=made.devices)
            self._say({"ready": asdict(self._record)})
            self._was_ready = True
            ticket.rest()
            self._settled.set()
            async with sampling_disks(guest), run_timeline(guest):
                raise GuestLost(guest.name, guest.state.value, await guest.lost(), guest.console.tail())

    # What it is asked -------------------------------------------------------------------------------------------------------------

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One line of the control socket."""
        await control.answer_request(self._spec.name, {**self._desk.verbs, **self._verbs}, reader, writer)
        self._note_still()

    def _note_still(self) -> None:
        """That the guest stands still, or goes on again; not while one of its verbs makes it so for a moment."""
        if self._guest is None or self._record.state != registry.READY or self._desk.turn.locked():
            return
        why = self._guest.hardware.errors.stopped
        if why != self._record.why:
            self._note(why=why, resume_with=f"testbed resume {self._spec.name}" if why else "")

    def _ready(self) -> Guest:
        if self._guest is None or self._record.state != registry.READY:
            raise TestbedError(
                f"{self._spec.name} is {self._record.state}{f': {self._record.why}' if self._record.why else ''}"
            )
        return self._guest

    async def _down(self, asked: dict[str, Any]) -> dict[str, Any]:
        del asked
        self._ends = True
        self._asked.set()
        return {}

    async def _snapshot(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Save the guest as a snapshot in a new `folder`."""
        folder = Path(asked["folder"])
        async with self._desk.turn, self._desk.agent:
            guest = self._ready()
            if folder.exists():
                raise UsageError(
                    f"{self._spec.name} has a snapshot {folder.name} already; choose another name, or remove it with --rm"
                )
            if self._record.resume_with:
                raise UsageError(registry.stopped_message(self._record))
            await snapshot.save_snapshot(guest, folder, asdict(self._spec))
        return {}

    async def _restore(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Go on from the snapshot in `folder`, whatever the guest is doing, and also where it is lost."""
        async with self._desk.turn:
            self._spec = replace(self._spec, snapshot=str(asked["folder"]))
            await self._again()
        return {}

    async def _power_cut(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Let the guest lose its power, and boot it again on what its disks hold then."""
        async with self._desk.turn:
            kept = self._factory.new_folder()
            lost = await self._ready().cut_power(kept, share=float(asked["share"]), seed=int(asked["seed"]))
            self._surviving_disks = kept
            await self._again()
        return {"lost_blocks": lost}

    async def _again(self) -> None:
        """Put another guest in the place of this one.

        :raise TestbedError: it does not get ready.
        """
        self._note(state=registry.STARTING, why="", resume_with="")
        self._settled.clear()
        self._asked.set()
        await self._settled.wait()
        self._ready()


def _why(ended: asyncio.Task[None]) -> str:
    error = ended.exception()
    return error.why if isinstance(error, GuestLost) else str(error)
