"""The scenarios: one file a claim, and the explicit table of them."""

from __future__ import annotations

from testbed.errors import UsageError
from testbed.scenarios.base import Case, Scenario
from testbed.scenarios.debug import DESTROY_RACE, IO_LATENCY, LEAK, LOCK_ORDER, NO_WORKER
from testbed.scenarios.destroy import DEFERRED_DESTROY
from testbed.scenarios.limit import SMALL_MEMORY
from testbed.scenarios.many import MANY
from testbed.scenarios.nested import NESTED
from testbed.scenarios.nesting import LISTENERS, PUNCH
from testbed.scenarios.oom import GATE, OOM_TMPFS
from testbed.scenarios.rates import INVERSION, IO_MAX, IOCOST, PRESSURE
from testbed.scenarios.read import READ
from testbed.scenarios.requests import REQUESTS, WORKERS
from testbed.scenarios.shapes import ENGINES, PARTITION, SECTOR_SIZE
from testbed.scenarios.swap import SWAP_IN
from testbed.scenarios.weight import WEIGHT
from testbed.scenarios.write import WRITE_BTRFS, WRITE_EXT4, WRITE_XFS

# In the order in which they run and are reported.
_ALL = (
    OOM_TMPFS,
    GATE,
    READ,
    WRITE_XFS,
    WRITE_EXT4,
    WRITE_BTRFS,
    SMALL_MEMORY,
    NESTED,
    WORKERS,
    REQUESTS,
    MANY,
    ENGINES,
    SECTOR_SIZE,
    PARTITION,
    PUNCH,
    LISTENERS,
    SWAP_IN,
    DEFERRED_DESTROY,
    IO_MAX,
    PRESSURE,
    IOCOST,
    INVERSION,
    WEIGHT,
    LOCK_ORDER,
    DESTROY_RACE,
    LEAK,
    NO_WORKER,
    IO_LATENCY,
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}

# What runs where nothing is named: the cover letter's own script, what switches the charge, and a disk's bytes on both kinds of disk.
MAIN = ("oom-tmpfs", "gate", "read/virtio-blk/ext4", "read/nvme/ext4")


def cases() -> dict[str, Case]:
    """Every scenario at each of its points, by name, in the table's order."""
    every = (Case(scenario=scenario, point=point) for scenario in SCENARIOS.values() for point in scenario.points)
    return {case.name: case for case in every}


def select(names: tuple[str, ...], *, quick: bool = False, full: bool = False) -> tuple[Case, ...]:
    """The cases meant by a command line, in the table's order: whole names, or `read` or `read/nvme` for all that begin so.

    `quick`: of each scenario the first one meant. Without names: all for `quick` or `full`, and else `MAIN`.

    :raise UsageError: a name means none.
    """
    known = cases()
    for name in names:
        if not any(_means(name, case) for case in known):
            raise UsageError(f"scenario {name!r}: expected one of {', '.join(SCENARIOS)}, or one of their points such as {MAIN[-1]}")
    wanted = names or (() if quick or full else MAIN)
    chosen = [case for name, case in known.items() if not wanted or any(_means(one, name) for one in wanted)]
    if quick:
        first: dict[str, Case] = {}
        for case in chosen:
            first.setdefault(case.scenario.name, case)
        chosen = list(first.values())
    return tuple(chosen)


def _means(name: str, known: str) -> bool:
    return known == name or known.startswith(f"{name}/")
