"""Formats the tries of a bug as a table and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from testbed.guest.channels.kernel_log import clean
from testbed.report.bugs.schema import Account, Attempt, Kernel, Repro

# How many of the ways in which tries ended are shown.
_SHOWN_ENDINGS = 3
RATE = "rate, 95 % interval"
HEAD = ("kernel", "expected", "signature", RATE, "first hit", "median to the hit")


def repro_table(document: Repro) -> Table:
    """Make a table with a row for each kernel."""
    table = Table(*HEAD)
    for kernel in document.kernels:
        table.add_row(*map(escape, row(kernel)))
    return table


def row(kernel: Kernel) -> tuple[str, ...]:
    """Return a kernel's tries in the columns of `HEAD`; a cell may have several lines."""
    return (
        f"{kernel.name}\n{kernel.release}",
        "shows" if kernel.must_show else "clean",
        kernel.verdict + (",\nnot told apart" if kernel.told_apart is False else ""),
        rate(kernel),
        "" if kernel.first_hit is None else f"try {kernel.first_hit}, after {kernel.first_hit_s:.1f} s",
        "" if kernel.median_hit_s is None else f"{kernel.median_hit_s:.1f} s",
    )


def rate(kernel: Kernel) -> str:
    """Return how often the bug showed on a kernel, and how much that is worth."""
    low, high = kernel.interval
    lines = [f"{kernel.hits} of {kernel.tries}: {low:.0%} to {high:.0%}" if kernel.tries else "no try gave a result"]
    if kernel.stopped:
        at = "the first hit" if kernel.hits == 1 else f"{kernel.hits} hits"
        lines.append(f"stopped at {at}" + (f", {kernel.cut} cut short" if kernel.cut else ""))
    if not kernel.ended:
        lines.append("more tries were to come")
    if kernel.troubles:
        lines.append(f"{kernel.troubles} gave no result")
    return "\n".join(lines)


def notable_outcomes(document: Repro) -> list[str]:
    """List what a person should know of single tries: what the first hit showed, and what went wrong."""
    lines: list[str] = []
    for kernel in document.kernels:
        hits = [attempt for attempt in kernel.attempts if attempt.outcome == "hit"]
        notes = [(hits[0], (hits[0].seen or "").replace("\n", " | "))] if hits else []
        notes += [(attempt, attempt.why) for attempt in kernel.attempts if attempt.outcome == "trouble"]
        notes += [(attempt, attempt.dump) for attempt in kernel.attempts if attempt.dump]
        notes += [(attempt, text) for attempt in kernel.attempts for text in contradictions(attempt.disks)]
        lines += [f"{kernel.name}: try {attempt.number}: {text}" for attempt, text in notes]
        if ended := endings(kernel):
            lines.append(f"{kernel.name}: {ended}")
    return lines


def endings(kernel: Kernel) -> str:
    """Describe how the tries without a hit ended on a kernel, the most frequent way first; "" if there are none."""
    counted = Counter(clean(_first_line(attempt.why)) for attempt in kernel.attempts if attempt.outcome == "miss")
    ways = [f"{way}{f' ({count} times)' if count > 1 else ''}" for way, count in counted.most_common(_SHOWN_ENDINGS)]
    if not ways:
        return ""
    more = len(counted) - len(ways)
    complaints = [complaint for attempt in kernel.attempts if (complaint := kernel_complaint(attempt))]
    log = f"; its kernel's log in {len(complaints)}: {complaints[0]}" if complaints else ""
    return f"where it did not show: {'; '.join(ways)}{f'; and {more} other ways' if more else ''}{log}"


def kernel_complaint(attempt: Attempt) -> str:
    """Return the first complaint of the kernel in a try without a hit, or that its log was not read; "" without one."""
    return clean(attempt.kernel_log[0]) if attempt.outcome == "miss" and attempt.kernel_log else ""


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def contradictions(disks: Iterable[Account]) -> list[str]:
    """List the disks on which the guest's accounting and the bytes that the emulated device moved cannot both be
    right."""
    return [f"disk {account.disk}: {account.finding}" for account in disks if account.finding]


def try_line(attempt: Attempt) -> str:
    """Return one try as a line of progress."""
    after = f" after {attempt.hit_after_s:.1f} s" if attempt.hit_after_s is not None else f", {attempt.took_s:.1f} s"
    text = attempt.seen if attempt.outcome == "hit" else attempt.why
    return f"try {attempt.number}: {attempt.outcome}{after}: {_first_line(text)}"
