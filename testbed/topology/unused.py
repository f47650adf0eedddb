"""Finds the parts of a topology that scenarios do not use.

Scenarios build stacks of their own, because only results of the same stack can be compared; from a file they take the
machine, its disks and its timeline. An unused part is an error before any guest starts, so that no report shows a
stack that was never built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import TopologyError, UsageError
from testbed.topology import trust
from testbed.topology.base import KeyPath, Model
from testbed.topology.disks import Disk
from testbed.topology.host_limits import HostLimits
from testbed.topology.load import points_from_mapping, select_point
from testbed.topology.model import GuestModel
from testbed.topology.yaml_reader import Reader, read_file, read_mapping

# Fields that reach a scenario's guest. All other fields of the models are unused, including new ones.
_GUEST = frozenset(
    {
        "image",
        "cpus",
        "memory",
        "accelerator",
        "cpu_model",
        "append",
        "environment",
        "qemu_args",
        "disks",
        "throttle_groups",
        "timeline",
        "sample",
    }
)
_DISK = frozenset(
    {
        "type",
        "size",
        "format",
        "image",
        "plug",
        "serial",
        "read_only",
        "write_cache",
        "discard",
        "queues",
        "logical_block_size",
        "physical_block_size",
        "profile",
        "scale",
        "latency",
        "throttle",
        "throttle_group",
        "cache",
        "cache_size",
        "rerror",
        "werror",
        "queue_size",
        "io_thread",
        "zoned",
        "namespaces",
    }
)
_STACK = "scenarios build stacks of their own"
_WHY = {
    "kernel": "the command line names the kernels of this verb",
    "networks": "a scenario's guest is on no network",
    "read_ahead": "scenarios set it themselves",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioTopology:
    """The guest of a file as scenarios use it.

    `kernel`: the kernel that the file names, for commands that run on it. `unused`: the places in the file that were
    dropped because of `--ignore-stack`.
    """

    guest: GuestModel
    kernel: str | None = None
    unused: tuple[str, ...] = ()


def unused_parts(guest: GuestModel) -> Iterator[tuple[KeyPath, str]]:
    """List the places in a guest that scenarios do not use, each with the reason."""
    yield from _unused(guest, _GUEST)
    for name, disk in guest.disks.items():
        for where, why in _unused(disk, _DISK):
            yield ("disks", name, *where), why


def _unused(model: Model, used: Iterable[str]) -> Iterator[tuple[KeyPath, str]]:
    for name, field in type(model).model_fields.items():
        if name not in used and getattr(model, name) != field.get_default(call_default_factory=True):
            yield (field.alias or name,), _WHY.get(name, _STACK)


def without_unused(guest: GuestModel) -> GuestModel:
    """Return the guest without its unused parts."""
    disks: dict[str, Disk] = {name: _without(disk, _DISK) for name, disk in guest.disks.items()}
    found: GuestModel = _without(guest, _GUEST).model_copy(update={"disks": disks})
    return found


def _without(model: Any, used: Iterable[str]) -> Any:
    fields = {
        name: field.get_default(call_default_factory=True)
        for name, field in type(model).model_fields.items()
        if name not in used
    }
    return model.model_copy(update=fields)


def load_for_scenarios(path: Path, *, limits: HostLimits | None, kernel: bool, ignore: bool) -> ScenarioTopology:
    """Load the only guest of a file, as scenarios use it.

    `kernel`: the command runs on the kernel that the file names. `ignore`: drop unused parts instead of refusing them.

    :raise TopologyError: the file has mistakes or unused parts; lists them all. :raise UsageError: several guests.
    """
    reader = Reader(str(path))
    topology = select_point(
        points_from_mapping(read_mapping(read_file(path), reader), reader, path, limits), str(path), None
    )
    if len(topology.guests) != 1:
        raise UsageError(f"{path}: scenarios run on a topology of one guest, this one has {', '.join(topology.guests)}")
    (name, guest), *_ = topology.guests.items()
    trust.check_trusted(guest.qemu_args)  # before a kernel is built for it
    own = guest.kernel if kernel else None
    for where, why in unused_parts(guest.model_copy(update={"kernel": None}) if kernel else guest):
        place = ("guests", name, *where)
        reader.add_problem(
            place, f"not used: {why}; leave it out, or add --ignore-stack", reader.key_positions.get(place)
        )
    if reader.problems and not ignore:
        raise TopologyError(
            tuple(sorted(reader.problems, key=lambda problem: (problem.file, problem.line, problem.column)))
        )
    return ScenarioTopology(
        guest=without_unused(guest), kernel=own, unused=tuple(problem.path for problem in reader.problems)
    )
