"""What reproducing a bug has shown, as a table and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from testbed.guest.channels.kernel_log import clean

# Ways in which tries of a kernel ended, as many as are shown.
_SHOWN_ENDINGS = 3
RATE = "rate, 95 % interval"
HEAD = ("kernel", "expected", "signature", RATE, "first hit", "median to the hit")


def repro_table(document: Mapping[str, Any]) -> Table:
    """Each kernel's tries."""
    table = Table(*HEAD)
    for one in document["kernels"]:
        table.add_row(*map(escape, row(one)))
    return table


def row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """One kernel's tries, in the columns of `HEAD`; a cell may have several lines."""
    return (
        f"{one['name']}\n{one['release']}",
        "shows" if one["must_show"] else "clean",
        one["verdict"] + (",\nnot told apart" if one.get("told_apart") is False else ""),
        rate(one),
        "" if one["first_hit"] is None else f"try {one['first_hit']}, after {one['first_hit_s']:.1f} s",
        "" if one["median_hit_s"] is None else f"{one['median_hit_s']:.1f} s",
    )


def rate(one: Mapping[str, Any]) -> str:
    """How often it showed on one kernel, and what that is worth."""
    low, high = one["interval"]
    lines = [f"{one['hits']} of {one['tries']}: {low:.0%} to {high:.0%}" if one["tries"] else "no try came to anything"]
    if one["stopped"]:
        at = "the first hit" if one["hits"] == 1 else f"{one['hits']} hits"
        lines.append(f"stopped at {at}" + (f", {one['cut']} cut short" if one["cut"] else ""))
    if not one.get("ended", True):
        lines.append("others were to come")
    if one["troubles"]:
        lines.append(f"{one['troubles']} came to nothing")
    return "\n".join(lines)


def notable_outcomes(document: Mapping[str, Any]) -> list[str]:
    """What a person should know of single tries: what the first hit saw, and what went wrong."""
    lines: list[str] = []
    for one in document["kernels"]:
        hits = [attempt for attempt in one["attempts"] if attempt["outcome"] == "hit"]
        if hits:
            seen = hits[0]["seen"].replace("\n", " | ")
            lines.append(f"{one['name']}: try {hits[0]['number']}: {seen}")
        lines += [
            f"{one['name']}: try {attempt['number']}: {attempt['why']}"
            for attempt in one["attempts"]
            if attempt["outcome"] == "trouble"
        ]
        lines += [
            f"{one['name']}: try {attempt['number']}: {attempt['dump']}"
            for attempt in one["attempts"]
            if attempt["dump"]
        ]
        lines += [
            f"{one['name']}: try {attempt['number']}: {said}"
            for attempt in one["attempts"]
            for said in contradictions(attempt)
        ]
        if ended := endings(one):
            lines.append(f"{one['name']}: {ended}")
    return lines


def endings(one: Mapping[str, Any]) -> str:
    """How the tries ended that did not show it on a kernel, the most frequent first: the other half of the bug. Empty without any."""
    counted = Counter(clean(_first(attempt["why"])) for attempt in one["attempts"] if attempt["outcome"] == "miss")
    ways = [f"{said}{f' ({count} times)' if count > 1 else ''}" for said, count in counted.most_common(_SHOWN_ENDINGS)]
    more = len(counted) - len(ways)
    complaints = [complaint for attempt in one["attempts"] if (complaint := kernel_complaints(attempt))]
    kernel = f"; its kernel's log in {len(complaints)}: {complaints[0]}" if complaints else ""
    return (
        f"where it did not show: {'; '.join(ways)}{f'; and {more} other ways' if more else ''}{kernel}" if ways else ""
    )


def kernel_complaints(attempt: Mapping[str, Any]) -> str:
    """What the kernel complained of in a try that did not show the bug, or that its log was not read, or nothing."""
    return clean(attempt["kernel_log"][0]) if attempt["outcome"] == "miss" and attempt.get("kernel_log") else ""


def _first(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def contradictions(attempt: Mapping[str, Any]) -> list[str]:
    """Where what a guest accounts for in one try, and what its emulated disks moved, cannot both be right."""
    return [
        f"disk {account['disk']}: {account['finding']}" for account in attempt.get("disks", ()) if account["finding"]
    ]


def try_line(one: Mapping[str, Any]) -> str:
    """One try, for whoever watches."""
    after = f" after {one['hit_after_s']:.1f} s" if one["hit_after_s"] is not None else f", {one['took_s']:.1f} s"
    said = one["seen"] if one["outcome"] == "hit" else one["why"]
    return f"try {one['number']}: {one['outcome']}{after}: {_first(said)}"
