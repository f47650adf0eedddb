"""Formats VMs, their hardware and the load of their disks as tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from testbed.hardware.commands import MACHINE
from testbed.host import registry
from testbed.host.registry import VmRecord
from testbed.units import MIB, format_size

_STYLES = {registry.READY: "green", registry.STARTING: "yellow", registry.LOST: "bold red"}


def guests_table(records: tuple[VmRecord, ...]) -> Table:
    """Make a row for each VM."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "state", "kernel", "age", "disks", "memory", "topology"):
        table.add_column(column, no_wrap=column in ("name", "age"), overflow="fold")
    for record in records:
        why = record.why.splitlines()[0] if record.why else ""
        if record.resume_with:
            why += f"; let it go on with: {record.resume_with}"
        table.add_row(
            record.name,
            Text(f"{record.state}{f': {why}' if why else ''}", style=_STYLES.get(record.state, "")),
            record.release or record.kernel,
            age(time.time() - record.since),
            ", ".join(record.disks),
            format_size(record.memory_bytes),
            f"{record.topology.rpartition('/')[2]}{f' {record.point}' if record.point else ''}",
        )
    return table


def hardware_table(hardware: Mapping[str, Mapping[str, Sequence[str]]]) -> RenderableType:
    """Make a row for each disk: its limits, delays and faults in the syntax of the command line, and its errors. Below
    them the memory and CPUs of the machine.
    """
    table = Table(box=None, pad_edge=False)
    for column in ("disk", "throttle", "delay", "inject", "errors"):
        table.add_column(column, overflow="fold")
    for disk, condition in hardware.items():
        if disk != MACHINE:
            table.add_row(
                disk,
                *(Text(" ".join(condition[what])) for what in ("throttle", "delay", "inject")),
                Text(", ".join(condition["errors"])),
            )
    machine = Text(", ".join(f"{what} {' '.join(value)}" for what, value in hardware.get(MACHINE, {}).items()))
    return Group(*([table] if table.row_count else []), *([machine] if machine else []))


def age(seconds: float) -> str:
    """Format an age such as 12s, 3m 05s, 2h 04m, 3d 1h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLoad:
    """The load of one disk of one guest between two readings. Rates are per second, latencies in milliseconds; pairs
    are of reads and writes. `shares`: of the disk's bytes, by control group, the largest first."""

    guest: str
    disk: str
    iops: tuple[float, float]
    bytes_s: tuple[float, float]
    latency_ms: tuple[float | None, float | None]
    limits: tuple[str, ...]
    shares: tuple[tuple[str, float], ...]


def disk_loads(guest: str, before: dict[str, Any], after: dict[str, Any]) -> tuple[DiskLoad, ...]:
    """Return the load of each disk, as the difference of two readings (`metrics.readings.read_all`)."""
    seconds = max(after["at"] - before["at"], 1e-3)
    loads = []
    for name, now in after["disks"].items():
        then = before["disks"].get(name)
        if then is None:
            continue
        requests, moved, time_ns = (
            [now[way][key] - then[way][key] for way in ("rd", "wr")] for key in ("requests", "bytes", "time_ns")
        )
        groups = {group: count - then["cgroups"].get(group, 0) for group, count in now["cgroups"].items()}
        shares = {group: count / sum(moved) for group, count in groups.items() if count > 0 and sum(moved)}
        loads.append(
            DiskLoad(
                guest=guest,
                disk=name,
                iops=(requests[0] / seconds, requests[1] / seconds),
                bytes_s=(moved[0] / seconds, moved[1] / seconds),
                latency_ms=(_each_ms(time_ns[0], requests[0]), _each_ms(time_ns[1], requests[1])),
                limits=tuple(
                    f"{kind} {format_size(limit) if kind.startswith('bps') else limit}"
                    for kind, limit in now["limits"].items()
                ),
                shares=tuple(sorted(shares.items(), key=lambda item: -item[1])),
            )
        )
    return tuple(loads)


def _each_ms(time_ns: int, requests: int) -> float | None:
    return time_ns / requests / 1e6 if requests else None


def loads_table(loads: tuple[DiskLoad, ...]) -> Table:
    """Make a row for each disk."""
    table = Table(box=None, pad_edge=False)
    for column in ("guest", "disk"):
        table.add_column(column, no_wrap=True)
    for column in ("r/s", "w/s", "rMiB/s", "wMiB/s", "r ms", "w ms"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("limit", overflow="fold")
    table.add_column("of its bytes", overflow="fold")
    for load in loads:
        table.add_row(
            load.guest,
            load.disk,
            *(f"{rate:.0f}" for rate in load.iops),
            *(f"{rate / MIB:.1f}" for rate in load.bytes_s),
            *("" if each is None else f"{each:.1f}" for each in load.latency_ms),
            ", ".join(load.limits),
            ", ".join(f"{group} {share:.0%}" for group, share in load.shares[:4]),
        )
    return table
