"""The models of a topology file, and its JSON Schema, which is made from them.

Keys have the names that QEMU and the kernel use.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from testbed.topology.base import Duration, Model, Name, PrintableText, Size, TupleOf, Version
from testbed.topology.cgroups import Cgroup, CgroupPath
from testbed.topology.disks import AnyDisk, Limits
from testbed.topology.networks import Link, NetworkName, Nic, build_links
from testbed.topology.storage import DeviceName, Dm, File, Filesystem, Loop, Md, Swap
from testbed.topology.timeline import TimelineEntry
from testbed.units import GIB

EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class GuestModel(Model):
    """One virtual machine.

    `append`: arguments added to the kernel's command line. `environment`: variables of every command in the guest.
    `qemu-args`: arguments added to QEMU's command line, unchecked. `sample`: interval at which the counters of its
    disks are recorded.
    """

    kernel: str | None = None
    image: Name = "bookworm"
    cpus: Annotated[int, Field(ge=1, le=16)] = 2
    memory: Size = GIB
    accelerator: Literal["kvm", "tcg"] | None = None
    cpu_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,+=-]{1,200}$")] | None = None
    append: TupleOf[PrintableText] = ()
    environment: dict[EnvironmentName, PrintableText] = Field(default_factory=dict)
    qemu_args: TupleOf[PrintableText] = ()
    networks: dict[NetworkName, Nic] = Field(default_factory=dict)
    disks: dict[Name, AnyDisk] = Field(default_factory=dict)
    throttle_groups: dict[Name, Limits] = Field(default_factory=dict)
    filesystems: dict[DeviceName, Filesystem] = Field(default_factory=dict)
    files: dict[Name, File] = Field(default_factory=dict)
    loops: dict[Name, Loop] = Field(default_factory=dict)
    swaps: dict[Name, Swap] = Field(default_factory=dict)
    dm: dict[Name, Dm] = Field(default_factory=dict)
    md: dict[Name, Md] = Field(default_factory=dict)
    cgroups: dict[CgroupPath, Cgroup] = Field(default_factory=dict)
    timeline: TupleOf[TimelineEntry] = ()
    sample: Annotated[Duration, Field(ge=10_000)] | None = None

    @property
    def boots_cold(self) -> bool:
        """Return whether it cannot be a clone: it boots with a disk, or its timeline takes memory from it."""
        # A balloon punches holes in the file that a clone's memory is mapped from, which belongs to the template.
        return any(disk.cold for disk in self.disks.values()) or any(entry.verb == "memory" for entry in self.timeline)


class Topology(Model):
    """A whole topology file, or one point of its matrix."""

    version: Version
    guests: Annotated[dict[Name, GuestModel], Field(min_length=1)]

    @property
    def links(self) -> dict[str, tuple[Link, ...]]:
        """The ends of the private networks, by guest."""
        return build_links({name: guest.networks for name, guest in self.guests.items()})


Scalar = str | int | float | bool | None
AxisName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class Matrix(Model):
    """Several topologies in one file: in each point, `${AXIS}` stands for one of the values of the axis.

    `exclude` removes the points that have all values of an entry; `include` adds points, and names every axis.
    """

    axes: Annotated[dict[AxisName, Annotated[TupleOf[Scalar], Field(min_length=1)]], Field(min_length=1)]
    exclude: TupleOf[dict[AxisName, Scalar]] = ()
    include: TupleOf[dict[AxisName, Scalar]] = ()


class Document(Topology):
    """A topology file as it is written, which may extend another file and may have a matrix."""

    extends: str | None = None
    matrix: Matrix | None = None
    guests: dict[Name, GuestModel] = Field(default_factory=dict)  # all may be in the extended file


_PLACEHOLDER = {"type": "string", "pattern": r"\$\{[a-z][a-z0-9-]*\}", "description": "an axis of the matrix"}


def json_schema() -> str:
    """Return the JSON Schema of topology files, for editors, as `topologies/schema.json` has it."""
    schema = Document.model_json_schema(by_alias=True)
    for name, definition in schema["$defs"].items():
        if name != "Matrix":
            definition["properties"] = {
                key: _or_placeholder(schema) for key, schema in definition.get("properties", {}).items()
            }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _or_placeholder(schema: dict[str, Any]) -> dict[str, Any]:
    """Allow a placeholder instead of a property's value; in mappings and lists their own properties allow it."""
    if schema.get("type") in ("object", "array") or "$ref" in schema:
        return schema
    outer: dict[str, Any] = {key: schema[key] for key in ("default", "description", "title") if key in schema}
    return {**outer, "anyOf": [{key: value for key, value in schema.items() if key not in outer}, _PLACEHOLDER]}
