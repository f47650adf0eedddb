"""What a scenario is: a claim, what it needs, what it predicts for both kinds of kernel, and its steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from testbed.guest import Guest
from testbed.topology.model import Guest as GuestModel
from testbed.verdict import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that the guest's kernel must have. `test`: a shell condition that is true where it has; see `NEEDS_PRELUDE`."""

    what: str
    test: str


# What the conditions may use besides the shell's builtins. An exec of grep costs 0.1 s under emulation, this costs nothing.
NEEDS_PRELUDE = """\
has_word() { read -r words <"$2" && case " $words " in *" $1 "*) ;; *) false ;; esac; }
"""


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


_SUBTREE_CONTROL = "/sys/fs/cgroup/cgroup.subtree_control"
MEMORY_CONTROLLER = Need(what="the memory controller of cgroup v2", test=f"has_word memory {_SUBTREE_CONTROL}")
IO_CONTROLLER = Need(what="the io controller of cgroup v2", test=f"has_word io {_SUBTREE_CONTROL}")
LOOP_DEVICES = Need(what="loop devices", test="test -e /dev/loop-control")
COMMON_NEEDS = (MEMORY_CONTROLLER, IO_CONTROLLER, LOOP_DEVICES)

COVER_LETTER = 'cover letter of "Charge loop device i/o to issuing cgroup", v5, 2020-04-20'


def lacks_nothing(model: GuestModel) -> str | None:
    """For a scenario that brings all it needs."""
    del model
    return None
