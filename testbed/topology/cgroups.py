"""Control groups in a topology file. Keys are the kernel's file names (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from testbed.topology.base import SIZE_PATTERN, Model, Rate, TupleOf
from testbed.topology.storage import DeviceName
from testbed.units import parse_size

# `tenant`, `tenant/job`: relative to the root of cgroup v2; `/` is the root itself.
CgroupPath = Annotated[str, Field(pattern=r"^(/|[a-z][a-z0-9._-]{0,31}(/[a-z][a-z0-9._-]{0,31}){0,7})$")]
Controller = Literal["cpu", "io", "memory", "pids"]
Weight = Annotated[int, Field(ge=1, le=10000)]


def _limit(value: Any) -> int | str:
    return "max" if value == "max" else parse_size(value)


_LIMIT_SCHEMA: dict[str, Any] = {
    "anyOf": [{"const": "max"}, {"type": "integer", "minimum": 0}, {"type": "string", "pattern": SIZE_PATTERN}]
}
Limit = Annotated[Literal["max"] | int, BeforeValidator(_limit), WithJsonSchema(_LIMIT_SCHEMA)]


class IoMax(Model):
    """io.max of one device: bytes and requests per second."""

    rbps: Limit = "max"
    wbps: Limit = "max"
    riops: Limit = "max"
    wiops: Limit = "max"


class CostModel(Model):
    """Linear io.cost.model of one device: bytes and requests per second that the device is assumed to do."""

    rbps: Rate
    rseqiops: Rate
    rrandiops: Rate
    wbps: Rate
    wseqiops: Rate
    wrandiops: Rate


class CostQos(Model):
    """io.cost.qos of one device: percentiles, latencies in microseconds, and the range of the rate in percent."""

    rpct: Annotated[float | int, Field(ge=0, le=100)] = 0
    rlat: Annotated[int, Field(ge=0)] = 0
    wpct: Annotated[float | int, Field(ge=0, le=100)] = 0
    wlat: Annotated[int, Field(ge=0)] = 0
    min: Annotated[float | int, Field(ge=1, le=10000)] = 100
    max: Annotated[float | int, Field(ge=1, le=10000)] = 100


class Cgroup(Model):
    """One control group. `controllers`: enabled for its children, in addition to those that their keys need."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "."))

    controllers: TupleOf[Controller] = ()
    memory_min: Limit | None = None
    memory_low: Limit | None = None
    memory_high: Limit | None = None
    memory_max: Limit | None = None
    memory_swap_max: Limit | None = None
    cpu_max: Annotated[str, Field(pattern=r"^(max|\d{1,9})( \d{1,7})?$")] | None = None
    cpu_weight: Weight | None = None
    io_max: dict[DeviceName, IoMax] = Field(default_factory=dict)
    io_weight: Weight | dict[DeviceName, Weight] | None = None
    io_latency: dict[DeviceName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    io_cost_model: dict[DeviceName, CostModel] = Field(default_factory=dict)
    io_cost_qos: dict[DeviceName, CostQos] = Field(default_factory=dict)
    pids_max: Limit | None = None
