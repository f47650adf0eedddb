"""Tables of VMs and of the load of their disks."""

import io
import time
from dataclasses import replace
from typing import Any

from rich.console import Console

from testbed.host import registry
from testbed.report import vm_tables
from tests.support.vm_records import RECORD


def reading(at: float, requests: int, **cgroups: int) -> dict[str, Any]:
    """Each request of 4096 bytes took 2 ms."""
    way = {"requests": requests, "bytes": requests * 4096, "time_ns": requests * 2_000_000}
    idle = {"requests": 0, "bytes": 0, "time_ns": 0}
    return {
        "at": at,
        "disks": {
            "data": {"rd": way, "wr": idle, "limits": {"iops-total": 100, "bps-total": 1 << 20}, "cgroups": cgroups}
        },
    }


def test_a_load_is_the_difference_of_two_readings() -> None:
    (load,) = vm_tables.disk_loads("g0", reading(10, 100, a=4096), reading(12, 300, a=4096 * 151, b=4096 * 50, c=0))
    assert load.iops == (100, 0) and load.bytes_s == (409600, 0) and load.latency_ms == (2, None)
    assert load.shares == (("a", 0.75), ("b", 0.25))
    young = replace(RECORD, since=time.time() - 65)
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(
        vm_tables.loads_table((load,)),
        vm_tables.guests_table((young, replace(young, state=registry.LOST, why="panic\nand more"))),
    )
    text = console.export_text()
    assert "iops-total 100, bps-total 1M" in text and "a 75%, b 25%" in text
    assert "1m 05s" in text and "lost: panic" in text and "and more" not in text


def test_ages() -> None:
    assert [vm_tables.age(seconds) for seconds in (5, 65, 3720, 90000)] == ["5s", "1m 05s", "1h 02m", "1d 1h"]
