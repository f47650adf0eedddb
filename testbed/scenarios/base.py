"""What a scenario is: a claim, what it needs, what it predicts for both kinds of kernel, and its steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from testbed.guest import Guest
from testbed.topology.model import Guest as GuestModel
from testbed.verdict import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that the guest's kernel must have; `test` is a command that ends with status 0 where it does."""

    what: str
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One claim about the series. A kernel without it must let the I/O bypass the cgroup, one with it must charge it.

    `patches`: which of the series' four patches it sees. `source`: where the claim comes from. `lacks`: why a topology's guest cannot
    show it, or None. `steps`: does it, on a fresh guest, and returns what was seen; what it raises is no verdict on the kernel.
    """

    name: str
    claim: str
    patches: tuple[int, ...]
    predicted_base: str
    predicted_patched: str
    source: str
    needs: tuple[Need, ...]
    lacks: Callable[[GuestModel], str | None]
    steps: Callable[[Guest], Awaitable[Evidence]]


_CGROUP = "/sys/fs/cgroup"
MEMORY_CONTROLLER = Need(what="the memory controller of cgroup v2", test=("grep", "-qw", "memory", f"{_CGROUP}/cgroup.subtree_control"))
IO_CONTROLLER = Need(what="the io controller of cgroup v2", test=("grep", "-qw", "io", f"{_CGROUP}/cgroup.subtree_control"))
LOOP_DEVICES = Need(what="loop devices", test=("test", "-e", "/dev/loop-control"))
COMMON_NEEDS = (MEMORY_CONTROLLER, IO_CONTROLLER, LOOP_DEVICES)

COVER_LETTER = 'cover letter of "Charge loop device i/o to issuing cgroup", v5, 2020-04-20'


def lacks_nothing(model: GuestModel) -> str | None:
    """For a scenario that brings all it needs."""
    del model
    return None
