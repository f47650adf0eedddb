"""Guest console lines to findings. Takes lines, does no I/O: recorded consoles of real kernels are its tests."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from testbed.printable import printable

# "[   12.345678] " or "[   12.345678][  T123] " before a kernel line; an SSH server's lines have other brackets.
_STAMP = re.compile(r"^(?:<\d+>)?\[\s*(?P<seconds>\d+\.\d{6})\](?:\[\s*[TC]\d+\])?\s?(?P<text>.*)$")


class Kind(enum.Enum):
    """What a console line says. A guest after PANIC or OOPS is lost to whoever waits for it."""

    PANIC = "panic"
    OOPS = "oops"
    WARNING = "warning"
    LOCKDEP = "lockdep"
    ATOMIC_SLEEP = "sleep in atomic context"
    KASAN = "KASAN"
    LIST_CORRUPTION = "list corruption"
    REFCOUNT = "refcount"
    LEAK = "kmemleak"
    HUNG_TASK = "hung task"
    LOCKUP = "lockup"
    RCU_STALL = "rcu stall"
    OOM = "oom"
    IO_ERROR = "I/O error"

    @property
    def fatal(self) -> bool:
        return self in (Kind.PANIC, Kind.OOPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line that matters; `seconds` is the guest's time since boot, None where the line has no stamp."""

    kind: Kind
    seconds: float | None
    text: str


# First match wins. The texts are those of kernel/panic.c, arch/x86/mm/fault.c, arch/x86/kernel/{dumpstack,traps}.c, kernel/hung_task.c,
# kernel/watchdog.c, kernel/rcu/tree_stall.h, mm/oom_kill.c, block/blk-core.c,
# kernel/locking/lockdep.c, kernel/sched/core.c, mm/kasan/report.c, mm/kmemleak.c, lib/{list_debug,refcount,debugobjects}.c, 5.10 to 7.2.
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (Kind.PANIC, re.compile(r"Kernel panic - not syncing")),
    (Kind.OOPS, re.compile(r"BUG: unable to handle|BUG: kernel NULL pointer|Oops: |general protection fault|kernel BUG at|double fault:")),
    (
        Kind.LOCKDEP,
        re.compile(
            r"WARNING: (?:possible .*(?:locking|lock inversion)|inconsistent lock state|\w+-safe -> \w+-unsafe lock|suspicious RCU usage"
            r"|bad unlock balance|held lock freed|lock held when returning)|BUG: Invalid wait context"
        ),
    ),
    (Kind.ATOMIC_SLEEP, re.compile(r"BUG: (?:sleeping function called from invalid context|scheduling while atomic)")),
    (Kind.KASAN, re.compile(r"BUG: (?:KASAN|KFENCE|KMSAN): ")),
    (Kind.LIST_CORRUPTION, re.compile(r"list_(?:add|del) (?:double add|corruption)")),
    (Kind.REFCOUNT, re.compile(r"refcount_t: ")),
    (Kind.LEAK, re.compile(r"kmemleak: \d+ new suspected memory leaks")),
    (Kind.WARNING, re.compile(r"WARNING: (?:CPU: \d+|.* at \S+:\d+)|ODEBUG: ")),
    (Kind.HUNG_TASK, re.compile(r"INFO: task .+ blocked for more than \d+ seconds")),
    (Kind.LOCKUP, re.compile(r"watchdog: BUG: (?:soft|hard) lockup|NMI watchdog: Watchdog detected hard LOCKUP")),
    (Kind.RCU_STALL, re.compile(r"rcu: INFO: rcu_\w+ (?:self-)?detected .*stall|rcu_\w+ kthread starved")),
    (Kind.OOM, re.compile(r"invoked oom-killer|Memory cgroup out of memory: Killed process|Out of memory: Killed process")),
    (Kind.IO_ERROR, re.compile(r"I/O error, dev |Buffer I/O error on dev|blk_update_request: \w+ error")),
)


def clean(line: str, most: int = 1000) -> str:
    """The line without what could steer a terminal, and not longer than `most` characters: a guest chooses these bytes."""
    return printable(line)[:most]


def classify(line: str) -> Finding | None:
    """What one console line says, or None where it says nothing that matters."""
    stamped = _STAMP.match(line)
    text = stamped["text"] if stamped else line
    for kind, pattern in _PATTERNS:
        if pattern.search(text):
            return Finding(kind=kind, seconds=float(stamped["seconds"]) if stamped else None, text=clean(text.strip()))
    return None
