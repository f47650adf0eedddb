"""Formats a run's results as sentences, table rows, and numbers with units. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from testbed.report.schema import Balance, Case, Control, Document
from testbed.topology.model import GuestModel, Topology
from testbed.units import format_size

_PAIR = {
    "PASS": "Without the series the gap is there, and with it the gap is closed, in every scenario that could run.",
    "FAIL": "In at least one scenario the patched kernel still shows what the series is to close.",
    "INVALID": "At least one comparison says nothing: the base shows no gap, a control misbehaved, or a measure is "
    "between the two.",
    "SKIP": "Nothing could run: the reasons are in the table.",
    "INFRA": "At least one guest was lost, or could not be read, before there was evidence: the run says "
    "nothing about the series there.",
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


def is_judged_alone(document: Document) -> bool:
    """Return whether each kernel has a verdict of its own."""
    return any(case.sides[side].verdict for case in document.scenarios for side in document.kernels)


def title(document: Document) -> str:
    """Return a title such as `Base against patched: PASS`."""
    sides = document.kernels
    what = (
        "Base against patched"
        if "patched" in sides
        else "Scenario by kernel"
        if len(sides) > 1
        else "Scenarios on one kernel"
    )
    return f"{what}: {document.verdict}{', partial' if omitted_cases(document) else ''}"


def omitted_cases(document: Document) -> str:
    """Return how far a partial run came, and what is therefore unknown, in sentences; "" for a complete run."""
    if document.partial is None:
        return ""
    known = " That of these one failed stays true." if document.verdict == "FAIL" else ""
    return f"Partial: {document.partial}. Nothing is known of the others.{known}"


def summary(document: Document) -> str:
    """Return the meaning of the verdict in a sentence; for a partial run how far it came."""
    return omitted_cases(document) or (_ALONE if is_judged_alone(document) else _PAIR)[document.verdict]


def counts(document: Document) -> list[tuple[str, int]]:
    """Count the cases of each verdict."""
    counter: Counter[str] = Counter(case.verdict for case in document.scenarios)
    return [(verdict, counter[verdict]) for verdict in _ORDER if counter[verdict]]


def claim(name: str) -> str:
    """Return in words what a kernel showed of the gap."""
    return _CLAIMS[name]


def quantity(value: float, unit: str) -> tuple[str, str]:
    """Return a number and its unit in the form that is easiest to read."""
    if unit == "bytes" and abs(value) >= 1024:
        size = format_size(value)
        return size[:-1], f"{size[-1]}iB"
    if unit == "s":
        return f"{value:.2f}", "s"
    whole = float(value).is_integer() and abs(value) < 1e15
    return f"{value:,.0f}" if whole else f"{value:.4g}", unit


def seconds(value: float) -> str:
    """Format a duration such as 12.3 s, or 4 min 05 s."""
    return f"{value:.1f} s" if value < 120 else f"{int(value) // 60} min {int(value) % 60:02} s"


def first_line(text: str) -> str:
    """Return the first line that is not empty."""
    return text.strip().partition("\n")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureCell:
    """A measure on one kernel; of several attempts the median, and `range` where they differ."""

    value: str
    unit: str
    range: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRow:
    """One measure. `source`: where it was read; `cells`: by kernel, None where the kernel has none."""

    name: str
    source: str
    cells: dict[str, MeasureCell | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRow:
    """One control; `cells`: by kernel, None where it was not tried."""

    name: str
    expected: str
    cells: dict[str, Control | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balances:
    """The comparisons of two counts of the same bytes: how many, how many differ by more than 1 %, and the largest
    difference as a share."""

    count: int
    beyond: int
    largest: float


# Counts of the same bytes that differ by a larger share are reported.
LARGE_DIFFERENCE = 0.01


def measures(case: Case, sides: Sequence[str]) -> list[MeasureRow]:
    """Make a row for each measure, in the order of the first kernel that has it."""
    cells: dict[str, dict[str, MeasureCell | None]] = {}
    sources: dict[str, dict[str, None]] = {}
    for side in sides:
        for name, measure in case.sides[side].measures.items():
            spread = (case.spread or {}).get(side, {}).get(name)
            value, unit = quantity(spread.median if spread else measure.value, measure.unit)
            range_ = ""
            if spread and spread.min != spread.max:
                low, high = (" ".join(quantity(end, measure.unit)) for end in (spread.min, spread.max))
                range_ = f"{low} to {high}"
            cells.setdefault(name, dict.fromkeys(sides))[side] = MeasureCell(value=value, unit=unit, range=range_)
            sources.setdefault(name, {})[measure.source] = None
    return [MeasureRow(name=name, source=", ".join(sources[name]), cells=row) for name, row in cells.items()]


def controls(case: Case, sides: Sequence[str]) -> list[ControlRow]:
    """Make a row for each control."""
    rows: dict[str, ControlRow] = {}
    for side in sides:
        for control in case.sides[side].controls:
            new = ControlRow(name=control.name, expected=control.expected, cells=dict.fromkeys(sides))
            rows.setdefault(control.name, new).cells[side] = control
    return list(rows.values())


def balance_rows(case: Case, sides: Sequence[str]) -> list[tuple[str, Balance, bool]]:
    """Return for each two counts of the same bytes the kernel, the counts, and whether they differ by more than 1 %."""
    return [
        (side, balance, balance.share > LARGE_DIFFERENCE) for side in sides for balance in case.sides[side].balances
    ]


def balances(document: Document) -> Balances:
    """Summarize all comparisons of two counts of the same bytes."""
    shares = [
        balance.share
        for case in document.scenarios
        for side in document.kernels
        for balance in case.sides[side].balances
    ]
    beyond = sum(share > LARGE_DIFFERENCE for share in shares)
    return Balances(count=len(shares), beyond=beyond, largest=max(shares, default=0.0))


def unexpected_lines(case: Case, sides: Sequence[str]) -> list[str]:
    """Summarize the lines of the kernels' logs that a case does not expect: for each kernel and kind the first line,
    and how many more there are."""
    summaries: list[str] = []
    for side in sides:
        lines = [line for line in case.sides[side].console if not line.expected]
        for kind, count in Counter(line.kind for line in lines).items():
            first = next(line.text for line in lines if line.kind == kind)
            summaries.append(f"{side}: {kind}: {first}" + (f" (and {count - 1} more)" if count > 1 else ""))
    return summaries


def describe_topology(topology: Topology) -> str:
    """Describe the picture of a topology in words, for readers who do not see it."""
    return " ".join(_describe_guest(name, guest) for name, guest in topology.guests.items())


def _describe_guest(name: str, guest: GuestModel) -> str:
    def parts() -> Iterator[str]:
        yield f"{guest.cpus} CPUs"
        yield f"{format_size(guest.memory)} of memory"
        for disk, model in guest.disks.items():
            profile = f", {model.profile}" if model.profile else ""
            yield f"disk {disk} ({model.type}, {format_size(model.size)}{profile})"
        for kind in ("filesystems", "files", "loops", "swaps", "dm", "md", "cgroups"):
            if names := getattr(guest, kind):
                yield f"{kind}: {', '.join(names)}"

    return f"Guest {name}: {'; '.join(parts())}."
