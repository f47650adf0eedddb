"""Which scenario notices which ablation: a table made of runs' documents, and whether it is as it must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from testbed.guest.channels.kernel_log import Kind
from testbed.report import partial
from testbed.report.markdown import cell
from testbed.scenarios.catalogue import SCENARIOS
from testbed.store.kernels.ablations import ABLATIONS

# What the source is called without an ablation.
UNCHANGED = "unchanged"
# Of each case on each kernel. IN_PART: sound measures, all of whose controls hold, of which some are as before the series, or one that
# is neither. EXCESS: more was charged than there was. CONTROL: a control does not hold, so that the measure says nothing.
NOTICED, IN_PART, EXCESS, LOG, LOST = "noticed", "in part", "too much", "in the log", "guest lost"
CONTROL, INDIFFERENT, NOTHING = "control", "-", ""
_COUNT = frozenset({NOTICED, IN_PART, EXCESS, LOG, LOST})
# Of the kernel's log, what ends a guest: without it a lost one may be this machine's doing.
_FATAL = frozenset(kind.value for kind in Kind if kind.fatal)
# And what is no splat.
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


def table(documents: Iterable[Mapping[str, Any]]) -> Table:
    """The words of every case on every ablation. Documents may hold some of the kernels each; of the same one the last counts. One that has
    the unchanged kernel is judged by its own: it may be another configuration, or another testbed.
    """
    read = tuple(documents)
    elsewhere = {case["name"] for document in read for case in document["scenarios"] if _sound(case.get(UNCHANGED))}
    found: Table = {}
    for document in read:
        for case in document["scenarios"]:
            row = found.setdefault(case["name"], {})
            sound = _sound(case[UNCHANGED]) if UNCHANGED in case else case["name"] in elsewhere
            row |= {
                name: _said(case[name]) if sound else row.get(name, NOTHING)
                for name in document["kernels"]
                if name != UNCHANGED
            }
    return found


def _sound(unchanged: Mapping[str, Any] | None) -> bool:
    """Whether a case passes on the unchanged kernel, so that another result elsewhere is the ablation's."""
    return unchanged is not None and unchanged.get("verdict") == "PASS" and not _splats(unchanged)


def _splats(side: Mapping[str, Any]) -> bool:
    return any(not line["expected"] and line["kind"] not in _HARMLESS for line in side["console"])


def _said(side: Mapping[str, Any]) -> str:
    verdict = side.get("verdict")
    if verdict == "FAIL":
        return {"partial": IN_PART, "excess": EXCESS}.get(side["claim"], NOTICED)
    if verdict == "INFRA" and any(not line["expected"] and line["kind"] in _FATAL for line in side["console"]):
        return LOST
    if _splats(side):
        return LOG
    if verdict == "INVALID":
        sound = all(control["holds"] for control in side["controls"])
        return IN_PART if sound and side["claim"] == "unclear" else CONTROL
    return INDIFFERENT if verdict == "PASS" else NOTHING


def table_complaints(found: Table, documents: Iterable[Mapping[str, Any]] = ()) -> tuple[str, ...]:
    """What is not as it must be: a run that ended early, a patch none of whose ablations is noticed, a scenario that notices none."""
    ends = ((document["run"], partial.read_partial(document)) for document in documents)
    said = [f"run {run} is partial: {end}" for run, end in ends if end is not None]
    kernels = {kernel for row in found.values() for kernel in row}
    if not kernels:
        said.append("nothing was taken away: no result is of an ablation")
    for patch in (1, 2, 3, 4):
        mine = {name for name in kernels if patch in ABLATIONS[name].patches}
        if mine and not any(row.get(name) in _COUNT for row in found.values() for name in mine):
            said.append(f"patch {patch}: no scenario notices {', '.join(sorted(mine))}")
    for scenario in dict.fromkeys(case.split("/")[0] for case in found):
        rows = [row for case, row in found.items() if case.split("/")[0] == scenario]
        words = {word for row in rows for word in row.values()}
        if words == {NOTHING} or not words:
            said.append(f"{scenario}: it has no result, or none on the unchanged kernel")
        elif not words & _COUNT:
            said.append(f"{scenario}: it notices none of {len(kernels)}")
    return tuple(said)


def markdown(found: Table, head: str, documents: Iterable[Mapping[str, Any]] = ()) -> str:
    """The table as it is kept, with what each ablation takes away; `head`: the lines above it; `documents`: it is made of them."""
    kernels = [name for name in ABLATIONS if any(name in row for row in found.values())]
    lines = [
        "# Which scenario notices which loss",
        "",
        head,
        "",
        "| ablation | of patch | what is lost | noticed by |",
        "|---|---|---|---|",
    ]
    for name in kernels:
        by = [case for case, row in found.items() if row.get(name) in _COUNT]
        patches = ", ".join(map(str, ABLATIONS[name].patches))
        lines.append(f"| {name} | {patches} | {ABLATIONS[name].what} | {cell(', '.join(by)) or 'none'} |")
    lines += ["", *_LEGEND, "", f"| case | patches | {' | '.join(kernels)} |", f"|---|---|{'---|' * len(kernels)}"]
    for case, row in found.items():
        scenario = SCENARIOS.get(case.split("/")[0])  # None: an earlier testbed called it so
        patches = ", ".join(map(str, scenario.patches)) if scenario else ""
        lines.append(f"| {cell(case)} | {patches} | {' | '.join(row.get(name, NOTHING) for name in kernels)} |")
    said = table_complaints(found, documents)
    asked = {patch for name in kernels for patch in ABLATIONS[name].patches}
    others = ", ".join(str(patch) for patch in (1, 2, 3, 4) if patch not in asked)
    as_it_must_be = "As it must be: each patch is noticed, and each scenario notices something." + (
        f" Nothing is known of patch {others}, of which nothing was taken away." if others else ""
    )
    lines += ["", "Not as it must be:", ""] if said else ["", as_it_must_be]
    lines += [f"- {cell(one)}" for one in said]
    return "\n".join(lines) + "\n"
