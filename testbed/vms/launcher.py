"""Starts guests that stay: what they need is made here, with progress; then each is given to a supervisor, a process that outlives us."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from testbed.errors import HostError, TestbedError, UsageError, one_line
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
# How long the steps of a stack may take before somebody should look.
_START_S = 1800.0
# Tells a supervisor that its guest is wanted now that all are ready: from then on it is on its own.
KEPT = b"kept\n"


def guest_names(topology: Topology, wanted: str | None) -> dict[str, str]:
    """What each guest of a topology is called on this machine: as in its file; or `wanted`, which comes before it where there are several.

    :raise UsageError: it is no name.
    """
    guests = list(topology.guests)
    found = {
        guest: guest if wanted is None else wanted if len(guests) == 1 else f"{wanted}-{guest}" for guest in guests
    }
    for name in found.values():
        check_name(name)
    return found


def check_name(name: str) -> None:
    """:raise UsageError: it is no name of a guest."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"expected a guest's name of small letters, digits and dashes, beginning with a letter, at most 33, got {name!r}"
        )


def check_free(names: Iterable[str], folders: Folders) -> None:
    """:raise UsageError: one of the names is taken."""
    there = {vm.record.name for vm in registry.list_vms(folders)}
    for name in names:
        if name in there:
            raise registry.name_taken(name)


async def start_vms(
    topology: Topology,
    *,
    file: Path,
    point: str,
    called: Mapping[str, str],
    kernels: Mapping[str, str],
    folders: Folders,
    evidence: Mapping[str, Path],
    cold: bool,
    at_once: bool,
    progress: Progress,
    waiting: tuple[PreforkedWorker, ...],
) -> tuple[VmHandle, ...]:
    """Start all guests of a topology, side by side as far as the host has room. `called`, `kernels`, `evidence`: by guest; `waiting`: a
    process for each; `at_once`: whether there is room or not.

    :raise TestbedError: one did not get ready; then none is there.
    """
    async with open_factory(progress, kernels=tuple(dict.fromkeys(kernels.values())), cold=cold) as factory:
        for guest, model in topology.guests.items():
            await factory.prepare(model, await factory.kernel(kernels[guest]))
            for beyond in disk_speed.too_fast_profiles(model, disk_speed.load(factory.folders.cache, factory.host)):
                progress.note(f"{guest}: {beyond}")
    networks = folders.runtime / f"net-{secrets.token_hex(4)}"
    specs = [
        VmSpec(
            name=called[guest],
            topology=topology.model_dump(mode="json", by_alias=True, exclude_unset=True),
            file=str(file),
            point=point,
            guest=guest,
            kernel=kernels[guest],
            networks=str(networks),
            evidence=str(evidence[guest]),
            cold=cold,
            at_once=at_once,
            sharing=len(topology.guests),
            trusted=trust.are_trusted(topology.guests[guest].qemu_args),
        )
        for guest in topology.guests
    ]
    return await launch_vms(specs, waiting, folders, progress)


async def fork_vms(
    saved: Snapshot,
    name: str,
    *,
    folders: Folders,
    evidence: Path,
    progress: Progress,
    waiting: tuple[PreforkedWorker, ...],
) -> VmHandle:
    """Start another guest from a snapshot, beside the one that it is of, and on no network: it would have the other's addresses.

    :raise TestbedError: the guest did not get ready.
    """
    networks = folders.runtime / f"net-{secrets.token_hex(4)}"
    changes: dict[str, Any] = {
        "name": name,
        "networks": str(networks),
        "evidence": str(evidence / name),
        "snapshot": str(saved.folder),
        "at_once": False,
        "sharing": 1,
    }
    (vm,) = await launch_vms([VmSpec(**{**saved.order, **changes})], waiting, folders, progress)
    return vm


async def launch_vms(
    specs: list[VmSpec], waiting: tuple[PreforkedWorker, ...], folders: Folders, progress: Progress
) -> tuple[VmHandle, ...]:
    """Give each order to one that waits; all of their guests are ready afterwards, or none is there.

    :raise TestbedError: as the supervisors say.
    """
    failures: list[TestbedError] = []
    wires: list[asyncio.StreamWriter] = []

    async def one(spec: VmSpec, spare: PreforkedWorker) -> None:
        try:
            with progress.task(spec.name) as task:
                Path(spec.evidence).mkdir(parents=True, exist_ok=True, mode=0o700)
                async with asyncio.timeout(_START_S):
                    reader, writer = await asyncio.open_connection(sock=spare.wire, limit=registry.LONGEST_LINE)
                    wires.append(writer)
                    writer.write(spec.to_json().encode() + b"\n")
                    await _ready(reader, spec, progress, task)
        except TimeoutError:
            failures.append(
                HostError(f"{spec.name}: expected to be ready within {_START_S:.0f} s; see {spec.evidence}")
            )
        except OSError as error:
            failures.append(HostError(f"{spec.name}: {spec.evidence}: cannot be made: {error.strerror}"))
        except TestbedError as error:
            failures.append(error)

    try:
        async with asyncio.TaskGroup() as group:
            for spec, spare in zip(specs, waiting, strict=True):
                group.create_task(one(spec, spare))
        if failures:
            # Of one class, or of none in particular.
            codes = {error.code for error in failures}
            raise one_line("\n".join(map(str, failures)), codes.pop() if len(codes) == 1 else "")
        for wire in wires:
            wire.write(KEPT)
        return tuple(registry.find_vm(folders, spec.name) for spec in specs)
    except BaseException:
        for spare in waiting:
            await asyncio.to_thread(spare.end)
        for folder in {spec.networks for spec in specs}:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        for wire in wires:
            wire.close()


async def _ready(reader: asyncio.StreamReader, spec: VmSpec, progress: Progress, task: Task) -> None:
    async for line in reader:
        said = parse_json_object(line)
        if "ready" in said:
            return
        if "error" in said:
            raise one_line(f"{said['error']}\n  its logs: {spec.evidence}", said.get("code", ""))
        if "note" in said:
            progress.note(f"{spec.name}: {said['note']}")
        else:
            task.update(detail=said.get("stage", ""))
    last = spec.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if spec.log.exists() else []
    raise HostError(
        f"{spec.name}: its supervisor ended before it was ready: {last[-1] if last else 'it said nothing'}; see {spec.log}"
    )
