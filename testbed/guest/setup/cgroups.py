"""Plans the steps that make a guest's cgroups, and what to read back. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from testbed import cgroupfs
from testbed.guest.setup.readback import Expected
from testbed.guest.setup.steps import Step, sh
from testbed.topology.cgroups import Cgroup
from testbed.topology.model import GuestModel

_COST_OFF = "enable=0"


def plan_cgroups(guest: GuestModel, devices: Mapping[str, str]) -> tuple[tuple[Step, ...], tuple[Expected, ...]]:
    """Plan the guest's cgroups, parents first. `devices`: the /dev path of each device of the topology.

    io.max and the like name whole disks: a partition has the limits of its disk.
    """
    steps: list[Step] = []
    facts: list[Expected] = []
    for path in _with_parents(guest):
        folder = cgroupfs.ROOT if path == "/" else f"{cgroupfs.ROOT}/{path}"
        group = guest.cgroups.get(path, Cgroup())
        values = list(_values(group, devices))
        enabled = " ".join(f"+{name}" for name in _controllers(path, guest))
        writes = [_write(f"{folder}/{file}", text, of) for file, text, of in values]
        if enabled and path != "/":
            writes.append(_write(f"{folder}/cgroup.subtree_control", enabled, None))
        undo = sh("rmdir", folder)
        if path == "/":
            undo = (
                " && ".join(
                    [_write(f"{cgroupfs.ROOT}/io.cost.qos", _COST_OFF, devices[name]) for name in group.io_cost_qos]
                )
                or "true"
            )
        make = [] if path == "/" else [sh("mkdir", folder)]
        if make or writes:
            steps.append(Step(what=f"cgroup {path}", do=(*make, *writes), undo=undo))
        for file, text, of in values:
            begin = "{NUMBER} " if of is not None else "default " if file == "io.weight" else ""
            expected = text.removeprefix("default ")
            facts.append(
                Expected(where=f"cgroups.{path}.{file}", file=f"{folder}/{file}", line=begin, expected=expected, of=of)
            )
    return tuple(steps), tuple(facts)


def _with_parents(guest: GuestModel) -> list[str]:
    """Return every path and its parents: the root first, parents before children, else in the order of the file."""
    found: dict[str, None] = {}
    for path in sorted(guest.cgroups, key=lambda path: path != "/"):
        words = [] if path == "/" else path.split("/")
        for count in range(1, len(words) + 1):
            found["/".join(words[:count])] = None
        if path == "/":
            found["/"] = None
    return list(found)


def _controllers(path: str, guest: GuestModel) -> list[str]:
    """Return the controllers that a cgroup enables for its children: those it lists, and those that its descendants
    need.
    """
    controllers: dict[str, None] = dict.fromkeys(guest.cgroups[path].controllers if path in guest.cgroups else ())
    for other, group in guest.cgroups.items():
        if other != path and (path == "/" or other.startswith(f"{path}/")):
            controllers |= dict.fromkeys(
                field.partition("_")[0] for field in sorted(group.model_fields_set - {"controllers"})
            )
            controllers |= dict.fromkeys(group.controllers)
    return list(controllers)


def _values(group: Cgroup, devices: Mapping[str, str]) -> Iterator[tuple[str, str, str | None]]:
    """Yield each value to write: file, text, and the /dev path of a device whose MAJ:MIN goes before the text."""
    for field in (
        "memory_min",
        "memory_low",
        "memory_high",
        "memory_max",
        "memory_swap_max",
        "cpu_max",
        "cpu_weight",
        "pids_max",
    ):
        value = getattr(group, field)
        if value is not None:
            yield field.replace("_", "."), str(value), None
    for name, limits in group.io_max.items():
        yield "io.max", _pairs(limits.model_dump()), devices[name]
    weights = (
        group.io_weight
        if isinstance(group.io_weight, dict)
        else {"default": group.io_weight}
        if group.io_weight
        else {}
    )
    for name, weight in weights.items():
        yield (
            ("io.weight", f"default {weight}", None) if name == "default" else ("io.weight", str(weight), devices[name])
        )
    for name, target in group.io_latency.items():
        yield "io.latency", f"target={target}", devices[name]
    for name, model in group.io_cost_model.items():
        yield "io.cost.model", f"ctrl=user model=linear {_pairs(model.model_dump())}", devices[name]
    for name, qos in group.io_cost_qos.items():
        yield "io.cost.qos", f"enable=1 ctrl=user {_pairs(qos.model_dump())}", devices[name]


def _pairs(values: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _write(file: str, text: str, of: str | None) -> str:
    """Return the shell command that writes a value, after the MAJ:MIN of the device `of`."""
    number = f'"$(stat -Lc %Hr:%Lr {shlex.quote(of)}) "' if of is not None else ""
    return f"echo {number}{shlex.quote(text)} >{shlex.quote(file)}"
