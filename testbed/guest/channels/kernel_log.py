"""Classifies lines of a guest's console. Pure; tested on recorded consoles of real kernels.

The classes refine a broad last one: a kernel line that begins an alarm (WARNING, BUG, Oops, UBSAN, INFO and the like)
and matches no class is `OTHER`, and so is a report none of whose lines matches. So a report in a new format is found
under the wrong class, not missed.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

import re2

from testbed.regex import LONGEST_LINE, compile_linear
from testbed.text import printable

# The time stamp before a kernel line, "[   12.345678] " or "[   12.345678][  T123] "; an SSH server's lines have other
# brackets. Text before the stamp was printed by a program and is not the kernel's.
_STAMP = compile_linear(r"\[\s*(?P<seconds>[0-9]{1,12}\.[0-9]{6})\](?:\[\s*[TC]\d+\])?\s?(?P<text>.*)$")


class Kind(enum.Enum):
    """Kinds of reports. PANIC and OOPS end every wait on the guest."""

    PANIC = "panic"
    OOPS = "oops"
    LOCKDEP = "lockdep"
    ATOMIC_SLEEP = "sleep in atomic context"
    KASAN = "KASAN"
    KCSAN = "KCSAN"
    UBSAN = "UBSAN"
    SLAB = "slab corruption"
    BAD_PAGE = "bad page"
    LIST_CORRUPTION = "list corruption"
    REFCOUNT = "refcount"
    LEAK = "kmemleak"
    WARNING = "warning"
    HUNG_TASK = "hung task"
    LOCKUP = "lockup"
    RCU_STALL = "rcu stall"
    OOM = "oom"
    IO_ERROR = "I/O error"
    FILESYSTEM = "filesystem error"
    DISK = "disk timeout"
    OTHER = "other"
    PROGRAM = "written by a program"
    UNREAD = "not read"

    @property
    def fatal(self) -> bool:
        """Whether the guest cannot go on."""
        return self in (Kind.PANIC, Kind.OOPS)

    @property
    def splat(self) -> bool:
        """Whether the kernel reports a bug of its own, not an error of a disk or a limit that was set on purpose."""
        return self not in (Kind.OOM, Kind.IO_ERROR, Kind.DISK, Kind.PROGRAM, Kind.UNREAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One report, by its first line; `seconds` since boot, None if the line has no time stamp.

    UNREAD: there may be more reports.
    """

    kind: Kind
    seconds: float | None
    text: str


# First match wins; RE2's syntax. The texts are those of 5.10 to 7.2, in the files that are named.
_CLASSES: tuple[tuple[Kind | None, str], ...] = (
    # No report; must come before the class `ODEBUG: ` below.
    (None, r"^ODEBUG: selftest passed"),
    # kernel/panic.c
    (Kind.PANIC, r"Kernel panic - not syncing"),
    # arch/x86/mm/fault.c, arch/x86/kernel/{dumpstack,traps,fred}.c, lib/bug.c. die() says `WHAT: CODE [#N]`, since 6.10
    # behind `Oops: `.
    (
        Kind.OOPS,
        r"BUG: (?:unable to handle|kernel NULL pointer|(?:.* )?stack guard page was hit|invalid or fatal FRED event)",
    ),
    (Kind.OOPS, r"\bOops: |^general protection fault|: [0-9a-f]{4,16} \[#\d+\]|[kK]ernel BUG at|PANIC: double fault"),
    # kernel/locking/{lockdep,spinlock_debug}.c, include/linux/debug_locks.h
    (
        Kind.LOCKDEP,
        r"WARNING: (?:possible .*(?:locking|lock inversion)|inconsistent lock state|\S+-safe -> \S+-unsafe lock)",
    ),
    (
        Kind.LOCKDEP,
        r"WARNING: (?:suspicious RCU usage|bad (?:unlock balance|contention)|held lock freed|lock held when returning)",
    ),
    (Kind.LOCKDEP, r"WARNING: nested lock was not taken|(?:WARNING|BUG): .* still has locks held|DEBUG_LOCKS_WARN_ON"),
    (
        Kind.LOCKDEP,
        r"BUG: (?:Invalid wait context|MAX_\w+ too low|looking up invalid subclass|key .* not |spinlock |rwlock )",
    ),
    (Kind.LOCKDEP, r"INFO: (?:trying to register non-static key|possible .*lock)"),
    # kernel/sched/core.c, lib/smp_processor_id.c, kernel/workqueue.c
    (Kind.ATOMIC_SLEEP, r"BUG: (?:sleeping function called from invalid context|scheduling while atomic)"),
    (Kind.ATOMIC_SLEEP, r"BUG: (?:using .* in preemptible|workqueue leaked )"),
    # mm/{kasan,kfence,kmsan}/report.c, kernel/kcsan/report.c, lib/ubsan.c
    (Kind.KASAN, r"\b(?:KASAN|KFENCE|KMSAN): "),
    (Kind.KCSAN, r"\bKCSAN: "),
    (Kind.UBSAN, r"\bUBSAN: "),
    # mm/slub.c: `BUG CACHE (TAINT): WHAT`, and before 5.12 INFO lines below it; mm/slab.c until 6.7
    (Kind.SLAB, r"\bBUG .+ \((?:Not tainted|Tainted:.*)\): |slab error in |INFO: (?:Slab|Object|0x|\S+ in \S+ age=)"),
    # mm/{memory,page_alloc,pgtable-generic,swapfile}.c, kernel/fork.c
    (Kind.BAD_PAGE, r"BUG: (?:Bad (?:page|rss-counter)|non-zero pgtables_bytes)|PAGETABLE BUG"),
    (Kind.BAD_PAGE, r": bad (?:pgd|p4d|pud|pmd) |Bad swap (?:file|offset) entry"),
    # lib/list_debug.c; lib/refcount.c, lib/percpu-refcount.c; mm/kmemleak.c
    (Kind.LIST_CORRUPTION, r"list_(?:add|del) (?:double add|corruption)"),
    (Kind.REFCOUNT, r"refcount_t: |percpu ref \(.*\) <= 0|percpu_ref_kill_and_confirm called more than once"),
    (Kind.LEAK, r"kmemleak: \d+ new suspected memory leaks|BUG: memory leak|unreferenced object 0x"),
    # kernel/panic.c: `CPU: N PID: N at FILE:LINE SYMBOL`, since 6.19 `FILE:LINE at SYMBOL, CPU#N: COMM/PID`.
    # lib/debugobjects.c
    (Kind.WARNING, r"WARNING: (?:CPU: \d+ PID: \d+ |(?:\S+:\d+ )?at .*, CPU#\d+: |.* at \S+:\d+)|ODEBUG: "),
    # kernel/hung_task.c, fs/fs-writeback.c; kernel/{watchdog,watchdog_hld,workqueue}.c;
    # kernel/rcu/{tree_stall,tree_exp,tasks}.h
    (Kind.HUNG_TASK, r"INFO: task .+ blocked|INFO: The task .* has been waiting for writeback"),
    (Kind.LOCKUP, r"\b(?:[sS]oft|[hH]ard|workqueue) lockup\b|Watchdog detected hard LOCKUP"),
    (Kind.RCU_STALL, r"INFO: .*\bdetected .*stall|\brcu\w* kthread (?:starved|timer wakeup)"),
    # mm/{oom_kill,page_alloc}.c
    (
        Kind.OOM,
        r"invoked oom-killer|[oO]ut of memory(?:: Killed process| and no killable)"
        r"|page allocation (?:failure: order:|stall )",
    ),
    # block/blk-{core,mq}.c, fs/{buffer,fserror}.c, mm/page_io.c;
    # drivers/{block/loop,nvme/host/core,scsi/scsi_lib,scsi/scsi_logging}.c
    (
        Kind.IO_ERROR,
        r"\berror, dev \S+,? |Buffer I/O error on dev|blk_update_request: .*error|loop: Write error at byte offset",
    ),
    (
        Kind.IO_ERROR,
        r"\(sct 0x[0-9a-f]+ / sc 0x[0-9a-f]+\)|FAILED Result: |rejecting I/O to |(?:Read|Write)-error on swap-device",
    ),
    (Kind.IO_ERROR, r"lost file I/O error report"),
    # fs/{ext4,f2fs,fat,udf,squashfs}, fs/jbd2/{journal,commit}.c
    (
        Kind.FILESYSTEM,
        r"\b(?:EXT[234]|EROFS|UDF)-fs:? error|(?:FAT|F2FS)-fs .*: (?:error|inconsistent|[cC]orrupt)|SQUASHFS error",
    ),
    (
        Kind.FILESYSTEM,
        r"EXT4-fs .*(?:Remounting filesystem read-only|I/O error|IO failure)"
        r"|EXT4-fs .*(?:csum_verify|[cC]hecksum .*(?:fail|invalid))",
    ),
    (
        Kind.FILESYSTEM,
        r"EXT4-fs .*(?:allocation failed|[dD]ata (?:loss|will be lost))"
        r"|Aborting journal on device|JBD2: .*(?:[eE]rror|corrupt)",
    ),
    (
        Kind.FILESYSTEM,
        r"Possible data corruption due to collision",
    ),  # mm/filemap.c, fs/iomap: direct I/O beside the page cache
    # fs/xfs/{xfs_error,xfs_fsops,xfs_log,xfs_buf,xfs_message}.c; fs/btrfs/messages.c
    (
        Kind.FILESYSTEM,
        r"XFS \(.*\): .*(?:[cC]orrupt|I/O [eE]rror|Internal error|CRC error|recovery failed|writeback error)",
    ),
    (Kind.FILESYSTEM, r"XFS \(.*\): .*(?:[sS]hut(?:ting)? ?down|rectify|run xfs_repair)|XFS.*: Assertion failed"),
    (
        Kind.FILESYSTEM,
        r"BTRFS:? (?:error|critical|alert|emergency)|BTRFS.*(?:csum failed|Transaction aborted|forced readonly)",
    ),
    # drivers/nvme/host/{pci,core}.c, drivers/scsi/scsi_error.c, drivers/ata/libata-{core,eh}.c
    (
        Kind.DISK,
        r"nvme\d*:? .*(?:\btimeout, |controller is down|Abort status|[dD]evice not ready|reset failure|probe failure)",
    ),
    (
        Kind.DISK,
        r"timing out command|\bata\d+(?:\.\d+)?: (?:exception Emask|failed command|SRST failed|hard resetting link)",
    ),
    # No report, if no class above matches: lines that follow a report, after its subsystem's name, and what a healthy
    # kernel prints about its processor (arch/x86/kernel/cpu/bugs.c) or its command line.
    (
        None,
        r"^(?:[\w-]+(?: \(\S+\))?: )?"
        r"INFO: (?:lockdep is turned off|(?:Expedited )?[Ss]tall ended|NMI handler|recovery required)",
    ),
    (None, r"^(?:Spectre V2 |RETBleed|ITS|Speculative Return Stack Overflow|process): WARNING: "),
    (None, r"^WARNING: (?:Spectre|Unprivileged eBPF|'bootconfig' found)"),
)
_FOUND = re2.Set.SearchSet()
for _, _pattern in _CLASSES:
    _FOUND.Add(_pattern)
_FOUND.Compile()

# The beginning of an alarm, in lines with a kernel time stamp only: programs use these words as well.
_ALARM = re2.compile(r"\b(?:WARNING|BUG|INFO|UBSAN|KCSAN|KASAN|KFENCE|KMSAN|PANIC|Oops): |\bBUG[ ,]|^(?:WARNING|BUG)\b")
# The prefix of a program's line in the kernel's log (`systemd[1]: `); a kernel subsystem's has no number.
_PROGRAM = re2.compile(r"^[^\s\[]+\[\d+\]: ")
# No class matches a shorter line.
_SHORTEST = 3
_CUT_HERE, _END = "[ cut here ]", "---[ end trace "
_TASK = compile_linear(r"CPU: [0-9]+ .{0,40}PID: [0-9]+ Comm: ")
# At most this many lines between a report's heading and its line of the task: an oops has five.
_HEADING_LINES = 12
# One readable pattern for any splat, used if the user names none (`repro --script` without `--expect`).
ANY_SPLAT = (
    r"\b(?:WARNING|BUG|INFO|UBSAN|KCSAN|KASAN|KFENCE|KMSAN|ODEBUG|PANIC|Oops): "
    r"|\bBUG[ ,]|\[ cut here \]|\[#\d+\]|[kK]ernel BUG at"
    r"|general protection fault|Kernel panic|DEBUG_LOCKS_WARN_ON|hard LOCKUP|kthread (?:starved|timer)"
    r"|memory leaks|unreferenced object"
    r"|: bad p.d |Bad swap|slab error|Possible data corruption"
    r"|(?:-fs|FS|XFS|JBD2|journal).*"
    r"(?:[eE]rror|[cC]orrupt|[sS]hut|on device|read-only|failed|[dD]ata (?:loss|will)|rectify|inconsistent)"
)


def clean(line: str, most: int = 1000) -> str:
    """Return a line without control characters, at most `most` characters long: the guest chooses these bytes."""
    return printable(line[: 4 * most])[:most]


def classify(line: str) -> Finding | None:
    """Return the report that one console line begins, or None."""
    return _classify(line, *split_stamp(line))


def _classify(line: str, seconds: float | None, text: str) -> Finding | None:
    found = _FOUND.Match(text)
    last = Kind.OTHER if seconds is not None and _ALARM.search(text) and not _PROGRAM.match(text) else None
    kind = _CLASSES[min(found)][0] if found else last
    return _finding(kind, line) if kind else None


def split_stamp(line: str) -> tuple[float | None, str]:
    """Split a line into the seconds since boot (None without a time stamp) and its text.

    Kernel lines have at most 1 KiB (LOG_LINE_MAX).
    """
    line = line[:LONGEST_LINE]
    stamped = _STAMP.search(line) if "[" in line else None
    return (float(stamped[1]), stamped[2]) if stamped else (None, line)


def _finding(kind: Kind, line: str) -> Finding:
    seconds, text = split_stamp(line)
    return Finding(kind=kind, seconds=seconds, text=clean(text.strip()))


class ConsoleReader:
    """Classifies the lines of one console in order.

    Beyond `classify`, it recognizes a report by its frame if none of its lines matches.

    A report of __warn() or die() (kernel/panic.c) has a heading, the task (`CPU: N PID: N Comm: ...`), and `end trace`
    at its end. Its first line, `cut here`, is below the console's level in 7.2.
    """

    def __init__(self) -> None:
        # The lines before the task's, since `cut here` if there was one; None stands for a line that matched a class.
        self._before: deque[str | None] = deque(maxlen=_HEADING_LINES)
        self._is_cut = False
        self._unknown: str | None = None

    def take(self, line: str) -> Finding | None:
        """Return the report that this line begins, or whose end shows that it was not recognized; else None."""
        if len(line) < _SHORTEST:
            self._before.append(line)
            return None
        seconds, text = split_stamp(line)
        found = _classify(line, seconds, text)
        is_splat = found is not None and found.kind.splat
        if is_splat:
            self._unknown = None
        elif _TASK.match(text):
            self._unknown = self._heading()
        if _END in line and found is None and self._unknown is not None:
            found = _finding(Kind.OTHER, self._unknown)
        if _CUT_HERE in line or _END in line:
            self._before.clear()
            self._is_cut, self._unknown = _CUT_HERE in line, None
        elif not text.startswith("Modules linked in:"):
            self._before.append(None if is_splat else line[:LONGEST_LINE])
        return found

    def _heading(self) -> str | None:
        """Return the heading of a report; None if one of its lines matched a class."""
        if None in self._before or not self._before:
            return None
        return self._before[0 if self._is_cut else -1]
