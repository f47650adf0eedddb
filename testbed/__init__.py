"""Checks kernel patch series on ephemeral QEMU guests with emulated disks; start with `testbed --help`.

For your own tests: `open_testbed`, or the fixtures of the pytest plugin (docs/pytest.md). Both are imported on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.api import (
        Cgroup,
        CgroupMaker,
        Compare,
        Comparison,
        Counters,
        Disk,
        Hardware,
        Loop,
        Qmp,
        Result,
        SideFailed,
        Testbed,
        Vm,
        open_testbed,
    )
    from testbed.errors import (
        CommandFailed,
        GuestError,
        GuestLost,
        HostError,
        ReadingError,
        TestbedError,
        TopologyError,
        UsageError,
    )

__version__ = "0.1.0"

_ERRORS = (
    "CommandFailed",
    "GuestError",
    "GuestLost",
    "HostError",
    "ReadingError",
    "TestbedError",
    "TopologyError",
    "UsageError",
)
__all__ = [
    "Cgroup",
    "CgroupMaker",
    "CommandFailed",
    "Compare",
    "Comparison",
    "Counters",
    "Disk",
    "GuestError",
    "GuestLost",
    "Hardware",
    "HostError",
    "Loop",
    "Qmp",
    "ReadingError",
    "Result",
    "SideFailed",
    "Testbed",
    "TestbedError",
    "TopologyError",
    "UsageError",
    "Vm",
    "open_testbed",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("testbed.errors" if name in _ERRORS else "testbed.api"), name)
    raise AttributeError(f"module 'testbed' has no attribute {name!r}")
