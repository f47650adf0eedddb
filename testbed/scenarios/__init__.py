"""The scenarios: one file a claim, and the explicit table of them."""

from __future__ import annotations

from testbed.errors import UsageError
from testbed.hardware.disks import DISK_KINDS
from testbed.scenarios.base import Scenario
from testbed.scenarios.oom import GATE, OOM_TMPFS
from testbed.scenarios.read import read_on

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (OOM_TMPFS, GATE, *(read_on(disk_type) for disk_type in DISK_KINDS))
}


def select(names: tuple[str, ...]) -> tuple[Scenario, ...]:
    """The scenarios meant by a command line, in the table's order: whole names, or `read` for all of `read/...`; all for none.

    :raise UsageError: a name means none.
    """
    for name in names:
        if not any(_means(name, known) for known in SCENARIOS):
            raise UsageError(f"scenario {name!r}: expected one of {', '.join(SCENARIOS)}")
    return tuple(row for known, row in SCENARIOS.items() if not names or any(_means(name, known) for name in names))


def _means(name: str, known: str) -> bool:
    return known == name or known.startswith(f"{name}/")
