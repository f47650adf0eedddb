"""Launches VMs: prepares what their guests need, with progress, then hands each guest to a supervisor process that
outlives us."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import HostError, TestbedError, UsageError, from_code
from testbed.guest.factory import open_factory
from testbed.guest.metrics import disk_speed
from testbed.host import registry
from testbed.host.paths import Folders
from testbed.host.registry import VmHandle
from testbed.progress import Progress, Task
from testbed.store.snapshot_files import Snapshot
from testbed.text import parse_json_object
from testbed.topology import Topology, trust
from testbed.vms.prefork import PreforkedWorker
from testbed.vms.supervisor import VmSpec

_NAME = re.compile(r"[a-z][a-z0-9-]{0,32}")
# A guest that is not ready by then, with its block stack, is given up.
_START_S = 1800.0
# Sent to each supervisor once all guests are ready: from then on it lives without the launching process.
KEPT = b"kept\n"


def guest_names(topology: Topology, name: str | None) -> dict[str, str]:
    """Return the VM name of each guest: without `name` that of the topology file; several guests get `name` as a
    prefix.

    :raise UsageError: one is no valid name.
    """
    guests = list(topology.guests)
    names = {guest: guest if name is None else name if len(guests) == 1 else f"{name}-{guest}" for guest in guests}
    for one in names.values():
        check_name(one)
    return names


def check_name(name: str) -> None:
    """:raise UsageError: it is no valid name of a VM."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            "expected a guest's name of small letters, digits and dashes, beginning with a letter, at most 33,"
            f" got {name!r}"
        )


def check_free(names: Iterable[str], folders: Folders) -> None:
    """:raise UsageError: one of the names is taken."""
    taken = {vm.record.name for vm in registry.list_vms(folders)}
    for name in names:
        if name in taken:
            raise registry.name_taken(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRequest:
    """One guest of a topology to launch as a VM: its name in the topology file and on this machine, its kernel, and the
    folder of its logs."""

    guest: str
    name: str
    kernel: str
    logs: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """The guests of a topology to launch as VMs. `file`, `point`: where the topology is from. `at_once`: without
    waiting for admission."""

    topology: Topology
    file: Path
    point: str
    guests: tuple[GuestRequest, ...]
    cold: bool = False
    at_once: bool = False

    def vm_specs(self, networks: Path) -> list[VmSpec]:
        """The spec of each VM. `networks`: the folder of the sockets of their networks."""
        topology = self.topology
        return [
            VmSpec(
                name=one.name,
                topology=topology.model_dump(mode="json", by_alias=True, exclude_unset=True),
                file=str(self.file),
                point=self.point,
                guest=one.guest,
                kernel=one.kernel,
                networks=str(networks),
                evidence=str(one.logs),
                cold=self.cold,
                at_once=self.at_once,
                sharing=len(topology.guests),
                trusted=trust.are_trusted(topology.guests[one.guest].qemu_args),
            )
            for one in self.guests
        ]


async def start_vms(
    request: LaunchRequest, folders: Folders, progress: Progress, workers: tuple[PreforkedWorker, ...]
) -> tuple[VmHandle, ...]:
    """Prepare images, kernels and templates here, with progress; then start all VMs of a topology, one worker each.

    :raise TestbedError: one did not get ready; then all were ended.
    """
    kernels = tuple(dict.fromkeys(one.kernel for one in request.guests))
    async with open_factory(progress, kernels=kernels, cold=request.cold) as factory:
        for one in request.guests:
            model = request.topology.guests[one.guest]
            await factory.prepare(model, await factory.kernel(one.kernel))
            for too_fast in disk_speed.too_fast_profiles(model, disk_speed.load(factory.folders.cache, factory.host)):
                progress.note(f"{one.guest}: {too_fast}")
    return await launch_vms(request.vm_specs(_new_networks(folders)), workers, folders, progress)


def _new_networks(folders: Folders) -> Path:
    return folders.runtime / f"net-{secrets.token_hex(4)}"


async def fork_vms(
    snapshot: Snapshot,
    name: str,
    *,
    folders: Folders,
    run: Path,
    progress: Progress,
    workers: tuple[PreforkedWorker, ...],
) -> VmHandle:
    """Start another VM from a snapshot, beside the original. It has no network, since it would have the original's
    addresses.

    `run`: the folder that gets the folder of its logs.

    :raise TestbedError: the guest did not get ready.
    """
    changes: dict[str, Any] = {
        "name": name,
        "networks": str(_new_networks(folders)),
        "evidence": str(run / name),
        "snapshot": str(snapshot.folder),
        "at_once": False,
        "sharing": 1,
    }
    (vm,) = await launch_vms([VmSpec(**{**snapshot.vm_spec, **changes})], workers, folders, progress)
    return vm


async def launch_vms(
    specs: list[VmSpec], workers: tuple[PreforkedWorker, ...], folders: Folders, progress: Progress
) -> tuple[VmHandle, ...]:
    """Hand each spec to a worker, which becomes the VM's supervisor. Afterwards either all guests are ready, or all
    were ended.

    :raise TestbedError: as the supervisors report.
    """
    launches = [_Launch(spec, worker, progress) for spec, worker in zip(specs, workers, strict=True)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(launch.run()) for launch in launches]
        if failures := [failure for task in tasks if (failure := task.result()) is not None]:
            # The error has the class of all failures, or that of none where they differ.
            codes = {error.code for error in failures}
            raise from_code("\n".join(map(str, failures)), codes.pop() if len(codes) == 1 else "")
        for launch in launches:
            launch.keep()
        return tuple(registry.find_vm(folders, spec.name) for spec in specs)
    except BaseException:
        for worker in workers:
            await asyncio.to_thread(worker.end)
        for folder in {spec.networks for spec in specs}:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        for launch in launches:
            launch.close()


class _Launch:
    """The launch of one VM: sends its spec to a worker and reads the worker's reports until the guest is ready."""

    def __init__(self, spec: VmSpec, worker: PreforkedWorker, progress: Progress) -> None:
        self._spec, self._worker, self._progress = spec, worker, progress
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> TestbedError | None:
        """Wait until the guest is ready; returns why it did not get ready."""
        spec = self._spec
        try:
            with self._progress.task(spec.name) as task:
                Path(spec.evidence).mkdir(parents=True, exist_ok=True, mode=0o700)
                async with asyncio.timeout(_START_S):
                    reader, self._writer = await asyncio.open_connection(
                        sock=self._worker.socket, limit=registry.LONGEST_LINE
                    )
                    self._writer.write(spec.to_json().encode() + b"\n")
                    await self._read_reports(reader, task)
        except TimeoutError:
            return HostError(f"{spec.name}: expected to be ready within {_START_S:.0f} s; see {spec.evidence}")
        except OSError as error:
            return HostError(f"{spec.name}: {spec.evidence}: cannot be made: {error.strerror}")
        except TestbedError as error:
            return error
        return None

    def keep(self) -> None:
        """Let the supervisor live without us."""
        if self._writer is not None:
            self._writer.write(KEPT)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    async def _read_reports(self, reader: asyncio.StreamReader, task: Task) -> None:
        spec = self._spec
        async for line in reader:
            report = parse_json_object(line)
            if "ready" in report:
                return
            if "error" in report:
                raise from_code(f"{report['error']}\n  its logs: {spec.evidence}", report.get("code", ""))
            if "note" in report:
                self._progress.note(f"{spec.name}: {report['note']}")
            else:
                task.update(detail=report.get("stage", ""))
        lines = spec.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if spec.log.exists() else []
        raise HostError(
            f"{spec.name}: its supervisor ended before it was ready: {lines[-1] if lines else 'it said nothing'};"
            f" see {spec.log}"
        )
