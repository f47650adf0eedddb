"""Makes a table of which scenario notices which ablation from runs' results, and checks that every patch is noticed."""

from __future__ import annotations

from collections.abc import Iterable

from testbed.guest.channels.kernel_log import Kind
from testbed.report.markdown import cell
from testbed.report.schema import Case, Document, Side
from testbed.scenarios.catalogue import SCENARIOS
from testbed.store.kernels.ablations import ABLATIONS

# The name of the source without an ablation.
UNCHANGED = "unchanged"
# What a case shows of a kernel. IN_PART: all controls hold, and some measures are as before the series, or one is
# neither as before nor as after it. EXCESS: more was charged than there was. CONTROL: a control does not hold, so that
# the measures say nothing.
NOTICED, IN_PART, EXCESS, LOG, LOST = "noticed", "in part", "too much", "in the log", "guest lost"
CONTROL, INDIFFERENT, NOTHING = "control", "-", ""
_COUNT = frozenset({NOTICED, IN_PART, EXCESS, LOG, LOST})
# Kinds of kernel log lines that end a guest: a guest lost without one may be lost by this machine.
_FATAL = frozenset(kind.value for kind in Kind if kind.fatal)
# Kinds that are no splat.
_HARMLESS = frozenset(kind.value for kind in Kind if not kind.splat)

_LEGEND = (
    f"`{NOTICED}`: as before the series. `{IN_PART}`: some sound measures are as before the series, or one is neither.",
    f"`{EXCESS}`: more was charged than there was.",
    f"`{LOG}`: the kernel's log has a splat. `{LOST}`: a panic or an oops ended the guest.",
    f"`{CONTROL}`: a control does not hold, so that the measure says nothing.",
    f"`{INDIFFERENT}`: as on the unchanged kernel. Empty: no result, or none on the unchanged kernel.",
)

# By case, by kernel.
Table = dict[str, dict[str, str]]


def table(documents: Iterable[Document]) -> Table:
    """Return the word for every case on every ablation. Each document may have some of the kernels; of a kernel in
    several documents the last counts. A document with the unchanged kernel is judged by its own unchanged kernel: it
    may be another configuration, or another testbed.
    """
    read = tuple(documents)
    sound_elsewhere = {case.name for document in read for case in document.scenarios if _is_sound(case)}
    rows: Table = {}
    for document in read:
        for case in document.scenarios:
            row = rows.setdefault(case.name, {})
            sound = _is_sound(case) if UNCHANGED in case.sides else case.name in sound_elsewhere
            row |= {
                name: _word(case.sides[name]) if sound else row.get(name, NOTHING)
                for name in document.kernels
                if name != UNCHANGED
            }
    return rows


def _is_sound(case: Case) -> bool:
    """Return whether a case passes on the unchanged kernel, so that the ablation explains another result elsewhere."""
    unchanged = case.sides.get(UNCHANGED)
    return unchanged is not None and unchanged.verdict == "PASS" and not _has_splat(unchanged)


def _has_splat(side: Side) -> bool:
    return any(not line.expected and line.kind not in _HARMLESS for line in side.console)


def _word(side: Side) -> str:
    if side.verdict == "FAIL":
        return {"partial": IN_PART, "excess": EXCESS}.get(side.claim or "", NOTICED)
    if side.verdict == "INFRA" and any(not line.expected and line.kind in _FATAL for line in side.console):
        return LOST
    if _has_splat(side):
        return LOG
    if side.verdict == "INVALID":
        sound = all(control.holds for control in side.controls)
        return IN_PART if sound and side.claim == "unclear" else CONTROL
    return INDIFFERENT if side.verdict == "PASS" else NOTHING


def table_complaints(rows: Table, documents: Iterable[Document] = ()) -> tuple[str, ...]:
    """List what is wrong: a run that ended early, a patch none of whose ablations is noticed, a scenario that notices
    none."""
    complaints = [
        f"run {document.run} is partial: {document.partial}" for document in documents if document.partial is not None
    ]
    kernels = {kernel for row in rows.values() for kernel in row}
    if not kernels:
        complaints.append("nothing was taken away: no result is of an ablation")
    for patch in (1, 2, 3, 4):
        names = {name for name in kernels if patch in ABLATIONS[name].patches}
        if names and not any(row.get(name) in _COUNT for row in rows.values() for name in names):
            complaints.append(f"patch {patch}: no scenario notices {', '.join(sorted(names))}")
    for scenario in dict.fromkeys(case.split("/")[0] for case in rows):
        words = {word for case, row in rows.items() if case.split("/")[0] == scenario for word in row.values()}
        if words == {NOTHING} or not words:
            complaints.append(f"{scenario}: it has no result, or none on the unchanged kernel")
        elif not words & _COUNT:
            complaints.append(f"{scenario}: it notices none of {len(kernels)}")
    return tuple(complaints)


def markdown(rows: Table, head: str, documents: Iterable[Document] = ()) -> str:
    """Format the table with what each ablation takes away. `head`: the lines above it; `documents`: what it is made
    of."""
    kernels = [name for name in ABLATIONS if any(name in row for row in rows.values())]
    lines = [
        "# Which scenario notices which loss",
        "",
        head,
        "",
        "| ablation | of patch | what is lost | noticed by |",
        "|---|---|---|---|",
    ]
    for name in kernels:
        by = [case for case, row in rows.items() if row.get(name) in _COUNT]
        patches = ", ".join(map(str, ABLATIONS[name].patches))
        lines.append(f"| {name} | {patches} | {ABLATIONS[name].what} | {cell(', '.join(by)) or 'none'} |")
    lines += ["", *_LEGEND, "", f"| case | patches | {' | '.join(kernels)} |", f"|---|---|{'---|' * len(kernels)}"]
    for case, row in rows.items():
        scenario = SCENARIOS.get(case.split("/")[0])  # None: an earlier testbed's name
        patches = ", ".join(map(str, scenario.patches)) if scenario else ""
        lines.append(f"| {cell(case)} | {patches} | {' | '.join(row.get(name, NOTHING) for name in kernels)} |")
    lines += _conclusion(kernels, table_complaints(rows, documents))
    return "\n".join(lines) + "\n"


def _conclusion(kernels: list[str], complaints: tuple[str, ...]) -> list[str]:
    if complaints:
        return ["", "Not as it must be:", "", *(f"- {cell(complaint)}" for complaint in complaints)]
    asked = {patch for name in kernels for patch in ABLATIONS[name].patches}
    others = ", ".join(str(patch) for patch in (1, 2, 3, 4) if patch not in asked)
    unknown = f" Nothing is known of patch {others}, of which nothing was taken away." if others else ""
    return ["", f"As it must be: each patch is noticed, and each scenario notices something.{unknown}"]
