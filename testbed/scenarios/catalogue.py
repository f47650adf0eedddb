"""The table of all scenarios. Each claim has a file in `claims/`."""

from __future__ import annotations

from testbed.errors import UsageError
from testbed.scenarios.claims.bfq_weight import WEIGHT
from testbed.scenarios.claims.debug_kernels import DESTROY_RACE, LEAK, LOCK_ORDER
from testbed.scenarios.claims.deferred_destroy import DEFERRED_DESTROY
from testbed.scenarios.claims.io_cost import INVERSION, IOCOST
from testbed.scenarios.claims.io_latency import IO_LATENCY
from testbed.scenarios.claims.io_limits import IO_MAX, PRESSURE
from testbed.scenarios.claims.loop_shapes import ENGINES, PARTITION, SECTOR_SIZE
from testbed.scenarios.claims.many_cgroups import MANY
from testbed.scenarios.claims.memory_limit import SMALL_MEMORY
from testbed.scenarios.claims.nested_charging import LISTENERS, PUNCH
from testbed.scenarios.claims.read import READ
from testbed.scenarios.claims.stacked_loops import NESTED
from testbed.scenarios.claims.swap_in import SWAP_IN
from testbed.scenarios.claims.tmpfs_oom import GATE, OOM_TMPFS
from testbed.scenarios.claims.worker_allocation import NO_WORKER
from testbed.scenarios.claims.workers import REQUESTS, WORKERS
from testbed.scenarios.claims.write import WRITE_BTRFS, WRITE_EXT4, WRITE_XFS
from testbed.scenarios.scenario import Case, Scenario

# In the order in which they run and are shown in reports.
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

# What runs by default: the script of the cover letter, the switch of the charge, and reads on both kinds of disk.
MAIN = ("oom-tmpfs", "gate", "read/virtio-blk/ext4", "read/nvme/ext4")


def cases() -> dict[str, Case]:
    """Return every scenario at each of its points, by name, in the order of the table."""
    every = [Case(scenario=scenario, point=point) for scenario in SCENARIOS.values() for point in scenario.points]
    return {case.name: case for case in every}


def select(names: tuple[str, ...], *, quick: bool = False, full: bool = False) -> tuple[Case, ...]:
    """Return the cases that a command line names, in the order of the table.

    A name is that of a case, or a prefix: `read` or `read/nvme` selects all cases below. `quick`: only the first case
    of each scenario. Without names: all cases for `quick` or `full`, otherwise `MAIN`.

    :raise UsageError: a name selects no case.
    """
    known = cases()
    for name in names:
        if not any(_selects(name, case) for case in known):
            raise UsageError(
                f"scenario {name!r}: expected one of {', '.join(SCENARIOS)}, or one of their points such as {MAIN[-1]}"
            )
    prefixes = names or (() if quick or full else MAIN)
    chosen = [
        case for name, case in known.items() if not prefixes or any(_selects(prefix, name) for prefix in prefixes)
    ]
    if quick:
        first: dict[str, Case] = {}
        for case in chosen:
            first.setdefault(case.scenario.name, case)
        chosen = list(first.values())
    return tuple(chosen)


def _selects(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}/")
