"""A run's results in words and rows, for pages: what the base and the patched kernel showed, and numbers with their units. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.report import partial
from testbed.topology.model import Topology
from testbed.units import format_size

_PAIR = {
    "PASS": "Without the series the gap is there, and with it the gap is closed, in every scenario that could run.",
    "FAIL": "In at least one scenario the patched kernel still shows what the series is to close.",
    "INVALID": "At least one comparison says nothing: the base shows no gap, a control misbehaved, or a measure is between the two.",
    "SKIP": "Nothing could run: the reasons are in the table.",
    "INFRA": "At least one guest was lost, or could not be read, before there was evidence: the run says nothing about the series there.",
}
_ALONE = {
    "PASS": "Each kernel shows what is expected of it, in every scenario that could run.",
    "FAIL": "At least one kernel shows something else than is expected of it.",
    "INVALID": "At least one measurement says nothing: a control misbehaved, or a measure is between the two.",
    "SKIP": _PAIR["SKIP"],
    "INFRA": "At least one guest was lost, or could not be read, before there was evidence.",
}
_CLAIMS = {
    "closed": "the gap is closed",
    "open": "the gap is there",
    "partial": "the gap is closed in part",
    "excess": "more was charged than there was",
    "unclear": "it is not clear whether the gap is there",
}
# In the order of the summary.
_ORDER = ("PASS", "FAIL", "INVALID", "INFRA", "SKIP")


def is_judged_alone(document: dict[str, Any]) -> bool:
    """Whether each kernel has a verdict of its own."""
    return any(case[side].get("verdict") for case in document["scenarios"] for side in document["kernels"])


def title(document: dict[str, Any]) -> str:
    """Such as `Base against patched: PASS`."""
    sides = document["kernels"]
    what = (
        "Base against patched"
        if "patched" in sides
        else "Scenario by kernel"
        if len(sides) > 1
        else "Scenarios on one kernel"
    )
    return f"{what}: {document['verdict']}{', partial' if omitted_cases(document) else ''}"


def omitted_cases(document: Mapping[str, Any]) -> str:
    """How far a partial run came, and what that leaves open, in sentences; empty for a complete one."""
    ended = partial.read_partial(document)
    if ended is None:
        return ""
    known = " That of these one failed stays true." if document["verdict"] == "FAIL" else ""
    return f"Partial: {ended}. Nothing is known of the others.{known}"


def summary(document: dict[str, Any]) -> str:
    """What the verdict means, in a sentence; of a partial run how far it came."""
    return omitted_cases(document) or (_ALONE if is_judged_alone(document) else _PAIR)[document["verdict"]]


def counts(document: dict[str, Any]) -> list[tuple[str, int]]:
    """Verdicts, and how many cases have each."""
    found = Counter(case["verdict"] for case in document["scenarios"])
    return [(verdict, found[verdict]) for verdict in _ORDER if found[verdict]]


def claim(seen: str) -> str:
    """What was seen on one kernel, in words."""
    return _CLAIMS[seen]


def quantity(value: float, unit: str) -> tuple[str, str]:
    """A number and its unit, as they are read most easily."""
    if unit == "bytes" and abs(value) >= 1024:
        size = format_size(value)
        return size[:-1], f"{size[-1]}iB"
    if unit == "s":
        return f"{value:.2f}", "s"
    whole = float(value).is_integer() and abs(value) < 1e15
    return f"{value:,.0f}" if whole else f"{value:.4g}", unit


def seconds(value: float) -> str:
    """Such as 12.3 s, or 4 min 05 s."""
    return f"{value:.1f} s" if value < 120 else f"{int(value) // 60} min {int(value) % 60:02} s"


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def measures(case: dict[str, Any], sides: list[str]) -> list[dict[str, Any]]:
    """One row a measure, in the order in which the first kernel that has it names it; cells by kernel."""
    rows: dict[str, dict[str, Any]] = {}
    for side in sides:
        for name, measure in case[side]["measures"].items():
            row = rows.setdefault(name, {"name": name, "sources": {}, "cells": dict.fromkeys(sides)})
            spread = ((case.get("spread") or {}).get(side) or {}).get(name)
            value, unit = quantity(spread["median"] if spread else measure["value"], measure["unit"])
            cell = {"value": value, "unit": unit, "range": ""}
            if spread and spread["min"] != spread["max"]:
                low, high = (" ".join(quantity(spread[end], measure["unit"])) for end in ("min", "max"))
                cell["range"] = f"{low} to {high}"
            row["cells"][side] = cell
            row["sources"][measure["source"]] = None
    return [{**row, "source": ", ".join(row["sources"])} for row in rows.values()]


def controls(case: dict[str, Any], sides: list[str]) -> list[dict[str, Any]]:
    """One row a control."""
    rows: dict[str, dict[str, Any]] = {}
    for side in sides:
        for control in case[side]["controls"]:
            row = rows.setdefault(
                control["name"],
                {"name": control["name"], "expected": control["expected"], "cells": dict.fromkeys(sides)},
            )
            row["cells"][side] = control
    return list(rows.values())


def balance_rows(case: dict[str, Any], sides: list[str]) -> list[dict[str, Any]]:
    """One row for each two counts of the same bytes."""
    return [
        {**balance, "side": side, "beyond": balance["share"] > 0.01}
        for side in sides
        for balance in case[side]["balances"]
    ]


def balances(document: dict[str, Any]) -> dict[str, Any]:
    """How many comparisons there were, how many differ by more than 1 %, and the largest difference."""
    found = [
        balance["share"]
        for case in document["scenarios"]
        for side in document["kernels"]
        for balance in case[side]["balances"]
    ]
    return {"count": len(found), "beyond": sum(share > 0.01 for share in found), "largest": max(found, default=0.0)}


def unexpected(case: dict[str, Any], sides: list[str]) -> list[str]:
    """What the kernels' logs of a case have that does not belong to it: for each kernel and class how many lines, and the first."""
    said: list[str] = []
    for side in sides:
        lines = [line for line in case[side]["console"] if not line["expected"]]
        for kind, count in Counter(line["kind"] for line in lines).items():
            first = next(line["text"] for line in lines if line["kind"] == kind)
            said.append(f"{side}: {kind}: {first}" + (f" (and {count - 1} more)" if count > 1 else ""))
    return said


def topology(shown: Topology) -> str:
    """The picture of a topology for those who do not see it."""
    return " ".join(_guest(name, shown) for name in shown.guests)


def _guest(name: str, shown: Topology) -> str:
    def parts() -> Iterator[str]:
        guest = shown.guests[name]
        yield f"{guest.cpus} CPUs"
        yield f"{format_size(guest.memory)} of memory"
        for disk, model in guest.disks.items():
            yield f"disk {disk} ({model.type}, {format_size(model.size)}{f', {model.profile}' if model.profile else ''})"
        for what in ("filesystems", "files", "loops", "swaps", "dm", "md", "cgroups"):
            if there := getattr(guest, what):
                yield f"{what}: {', '.join(there)}"

    return f"Guest {name}: {'; '.join(parts())}."
