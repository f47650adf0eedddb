"""Compares the kernel's log with its console: finds what the console did not show, and what on it came from a program.

Pure.

The console shows what is printed while it is read, down to warnings. The log also has what a clone's template printed
when it booted, what a program hid by lowering the console's level, what the kernel logs as mere information (kmemleak),
and who wrote each line: a line that a program wrote to /dev/kmsg looks like the kernel's on the console, but has
another facility in the log.

Sources: printk's levels and facilities, include/linux/kern_levels.h and syslog(3); taints,
Documentation/admin-guide/tainted-kernels.rst.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from testbed.guest.channels.kernel_log import ConsoleReader, Finding, Kind, clean
from testbed.regex import LONGEST_LINE, compile_linear
from testbed.units import is_digits

# The command that reads the log. Not `--raw`: util-linux 2.38 ors the facility into the level there.
COMMAND = ("sh", "-c", "cat /proc/sys/kernel/tainted; exec dmesg --decode")
_PRIORITY = compile_linear(r"^(\w+) *:(emerg|alert|crit|err|warn|notice|info|debug) *: (\[ *\d+\.\d+\])")
# A log buffer of 16 MiB, the largest of any distribution's kernel, has fewer.
_MOST_LINES = 200_000
_KERNEL = "kern"
_LOUD = frozenset({"emerg", "alert", "crit", "err", "warn"})
# Taints that stay when the kernel has reported a mistake of its own.
_TAINTS = {5: "a bad page", 7: "an oops", 9: "a warning", 14: "a soft lockup"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLog:
    """A guest's log: `text` as dmesg prints it, `lines` with facility and level, and the bits of `tainted`.

    `unread`: why part of it could not be read; empty if all was read.
    """

    text: str
    lines: tuple[tuple[str, str, str], ...]
    tainted: int
    unread: str = ""


def unreadable(why: object) -> KernelLog:
    """Return the log of a guest whose log could not be read."""
    return KernelLog(text="", lines=(), tainted=0, unread=str(why).strip().partition("\n")[0])


def parse(output: str, *, cut: bool = False) -> KernelLog:
    """Parse the output of `COMMAND`.

    A line without a priority continues the one above it, at its time. `cut`: the output was truncated.
    """
    first, _, raw = output.partition("\n")
    lines: list[tuple[str, str, str]] = []
    text: list[str] = []
    facility, level, stamp = _KERNEL, "warn", ""
    every = raw.split("\n", _MOST_LINES)
    for line in every[:_MOST_LINES]:
        found = _PRIORITY.match(line[:LONGEST_LINE]) if ":" in line else None
        if found:
            facility, level, stamp = found.groups()
        text.append(line[found.start(3) :] if found else line)
        if found or line.strip():
            lines.append((facility, level, text[-1] if found else f"{stamp} {line.lstrip()}"))
    known = is_digits(first, 10)
    unread = "" if known else f"expected the number of /proc/sys/kernel/tainted first, got {first[:80]!r}"
    if cut or len(every) > _MOST_LINES:
        unread = unread or f"it is larger than what is read of one, {_MOST_LINES} lines or 8 MiB"
    return KernelLog(
        text="\n".join(text),
        lines=tuple(lines),
        tainted=int(first) if known else 0,
        unread=unread,
    )


def merge(shown: Iterable[Finding], log: KernelLog, most: int) -> list[Finding]:
    """Merge the findings of the console with those of the log, ordered by time; from the log at most `most` of a kind.

    A log that was not read is a finding: without it, other reports of the kernel are unknown.
    """
    kernel, programs = _found(log, of_kernel=True), _found(log, of_kernel=False)
    theirs = _places(programs) - _places(kernel)
    found = [
        replace(finding, kind=Kind.PROGRAM) if (finding.seconds, finding.text) in theirs else finding
        for finding in shown
    ]
    known = Counter((finding.seconds, finding.text) for finding in found)
    count = Counter(finding.kind for finding in found)
    for finding in kernel:
        place = next((place for place in _places([finding]) if known[place]), None)
        if place is not None:
            known[place] -= 1
        elif count[finding.kind] < most:
            count[finding.kind] += 1
            found.append(finding)
    found.sort(key=lambda finding: finding.seconds or 0.0)
    if not any(finding.kind.splat for finding in found):
        found += _of_taints(log.tainted)
    if log.unread:
        found.append(
            Finding(kind=Kind.UNREAD, seconds=None, text=clean(f"the kernel's log was not read: {log.unread}"))
        )
    return found


def _places(findings: Iterable[Finding]) -> set[tuple[float | None, str]]:
    """Return how findings of the log look on the console: a kernel without CONFIG_PRINTK_TIME stamps no line there."""
    return {(seconds, finding.text) for finding in findings for seconds in (finding.seconds, None)}


def _found(log: KernelLog, *, of_kernel: bool) -> list[Finding]:
    """Return the findings of the log.

    Kind.OTHER counts for warnings and worse only: information uses the same words.
    """
    reader = ConsoleReader()
    found = [(level, reader.take(line)) for facility, level, line in log.lines if (facility == _KERNEL) is of_kernel]
    return [one for level, one in found if one is not None and (one.kind is not Kind.OTHER or level in _LOUD)]


def _of_taints(tainted: int) -> list[Finding]:
    """Return a finding for a report that left a taint but no line."""
    taints = [what for bit, what in _TAINTS.items() if tainted >> bit & 1]
    kinds = ", ".join(taints)
    text = f"/proc/sys/kernel/tainted is {tainted}: {kinds}, of which neither the console nor the log has a line"
    return [Finding(kind=Kind.OTHER, seconds=None, text=text)] if taints else []
