"""Two runs beside each other: what changed beyond chance and by how much, and of what nothing can be told. Pure.

Each measure of a case on a kernel is a sample in either run, of one value an attempt. The exact test of Mann and Whitney says whether two
samples differ, Benjamini's and Hochberg's adjustment over all measures how many of the differences may be chance, and Hodges' and Lehmann's
shift by how much (`rank_test`). How often a case passed is one more row (`passes`). Verdicts are compared as they are.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from testbed.report import partial, pass_rates, rank_test
from testbed.report.markdown import one_line
from testbed.report.wording import is_judged_alone, quantity

# Of the changes that are reported, so many are expected to be chance.
LEVEL = 0.05
# Shifts below that are no change, however regular.
_LEAST = {"bytes": 65536.0, "s": 0.05}
_HOW_FAR = "how far it came"
CHANGED, UNCHANGED, UNKNOWN = "changed", "unchanged", "nothing can be told"
EXIT_CODES = {UNCHANGED: 0, CHANGED: 1, UNKNOWN: 3}

Row = dict[str, Any]


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What `testbed report --diff --json` prints."""
    old, new = ({case["name"]: case for case in document["scenarios"]} for document in (before, after))
    both = [name for name in new if name in old]
    sides = [side for side in after["kernels"] if side in before["kernels"]]
    pairs = [(old[name], new[name], side) for name in both for side in sides if side in old[name] and side in new[name]]
    every = [row for pair in pairs for row in _rows(*pair)]
    alone = tuple(side for side in sides if is_judged_alone(before) and is_judged_alone(after))
    rows = [
        *(row for row in every if row is not None),
        *(row for name in both for row in pass_rates.rows(old[name], new[name], alone)),
    ]
    for row in rows:
        row |= {"adjusted_p": None, "changed": None}
    _judge(rows)
    found = {
        "before": _run(before),
        "after": _run(after),
        "setup": list(_setup(before, after)),
        "added": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
        "kernels_not_in_both": sorted({*before["kernels"]} ^ {*after["kernels"]}),
        "verdicts": [said for name in both for said in _verdicts(old[name], new[name], alone)],
        "one_sided": [said for pair in pairs for said in _one_sided(*pair)],
        "level": LEVEL,
        "needed": _needed(len(rows)),
        "same": len(every) - len(rows),
        "measures": [row for row in rows if row["changed"]],
        "ignored": [row for row in rows if row["changed"] is False],
        "untold": [row for row in rows if row["changed"] is None],
    }
    return found | {"result": _result(found)}


def _result(found: dict[str, Any]) -> str:
    if found["verdicts"] or found["measures"]:
        return CHANGED
    # Nobody knows what the cases of a partial run were that it did not come to.
    complete = all(row["what"] != _HOW_FAR for row in found["setup"])
    complete = complete and not (found["gone"] or found["added"] or found["kernels_not_in_both"] or found["one_sided"])
    return UNCHANGED if complete and _seen_alone(found) else UNKNOWN


def _seen_alone(found: dict[str, Any]) -> bool:
    """Whether any measure that had changed would have been seen, also if no other had."""
    if found["untold"] or not (found["ignored"] or found["same"]):
        return False
    return all(rank_test.least_p(*row["attempts"]) * len(found["ignored"]) <= LEVEL for row in found["ignored"])


def _needed(measures: int) -> int:
    """How many attempts in each run can show that one of so many measures has changed, and no other."""
    return next(size for size in range(rank_test.LEAST, 1000) if rank_test.least_p(size, size) * measures <= LEVEL)


def _run(document: dict[str, Any]) -> dict[str, Any]:
    return {"run": document["run"], "verdict": document["verdict"], "cases": len(document["scenarios"])}


def _setup(before: dict[str, Any], after: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What the two ran on, where it is not the same, and how far they came, where that is not to their ends."""
    ends = tuple(partial.read_partial(document) for document in (before, after))
    if any(ends):
        old, new = (str(end or "to its end") for end in ends)
        yield {"what": _HOW_FAR, "before": old, "after": new}
    pairs = [
        (f"kernel {side}", "release", before["kernels"].get(side), after["kernels"].get(side))
        for side in after["kernels"]
    ]
    pairs.append(("guest image", "name", before["image"], after["image"]))
    for what, name, old, new in pairs:
        if old and new and old["sha256"] != new["sha256"]:
            yield {
                "what": what,
                "before": f"{old[name]} {old['sha256'][:12]}",
                "after": f"{new[name]} {new['sha256'][:12]}",
            }
    for key in ("qemu", "qemu_sha256", "accelerator", "kernel", "cores"):
        old, new = (str(document["host"].get(key, "")) for document in (before, after))
        if old != new and old and new:
            yield {"what": f"host {key}", "before": old, "after": new}
    if before.get("topology") and after.get("topology") and before["topology"] != after["topology"]:
        yield {"what": "topology", "before": "another", "after": "another"}


def _rows(old: dict[str, Any], new: dict[str, Any], side: str) -> Iterator[Row | None]:
    """A row for each measure that one case has on one kernel in both runs; None for one that is the same in all attempts."""
    for name, measure in new[side]["measures"].items():
        was = old[side]["measures"].get(name)
        if was is None or was["unit"] != measure["unit"]:
            continue
        first, second = _values(old, side, name), _values(new, side, name)
        comparable = min(len(first), len(second)) >= rank_test.LEAST
        if comparable and len({*first, *second}) == 1:
            yield None
            continue
        row: Row = {
            "case": new["name"],
            "kernel": side,
            "measure": name,
            "unit": measure["unit"],
            "attempts": [len(first), len(second)],
            "before": statistics.median(first),
            "after": statistics.median(second),
            "shift": None,
            "interval": None,
            "change": None,
            "p": None,
        }
        if comparable:
            moved = rank_test.shift(first, second)
            row |= {"shift": moved.estimate, "interval": [moved.low, moved.high], "p": rank_test.p_value(first, second)}
            row["change"] = round(moved.estimate / abs(row["before"]), 4) if row["before"] else None
        yield row


def _verdicts(old: dict[str, Any], new: dict[str, Any], alone: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The verdicts of a case that are not the same: its own, or those of the kernels that are each judged alone."""
    said = [("", old, new, "reason")] if not alone else [(side, old[side], new[side], "judgement") for side in alone]
    for kernel, was, now, why in said:
        if was["verdict"] != now["verdict"]:
            yield {
                "case": new["name"],
                "kernel": kernel,
                "before": was["verdict"],
                "after": now["verdict"],
                "reason": now[why],
            }


def _one_sided(old: dict[str, Any], new: dict[str, Any], side: str) -> Iterator[str]:
    """What one case has on one kernel in one run only, and a case of which neither has evidence though it was not skipped."""
    where = f"{new['name']} on {side}"
    first, second = (run[side]["measures"] for run in (old, new))
    if old["verdict"] == new["verdict"] == "INFRA":
        yield f"{where}: lost in both runs"
    for name in first | second:
        if name not in first or name not in second:
            yield f"{where}: {name} only in the {'second' if name in second else 'first'}"
        elif first[name]["unit"] != second[name]["unit"]:
            yield f"{where}: {name} in {first[name]['unit']}, then in {second[name]['unit']}"


def _values(case: dict[str, Any], side: str, name: str) -> list[float]:
    """A measure's value in each attempt that has it."""
    measured = [attempt[side]["measures"] for attempt in case.get("attempts") or [case] if side in attempt]
    return [float(measures[name]["value"]) for measures in measured if name in measures]


def _judge(rows: Sequence[Row]) -> None:
    """Write into each row that was compared whether it changed, and into all why."""
    told = [row for row in rows if row["p"] is not None]
    for row, chance in zip(told, rank_test.adjust_p_values([row["p"] for row in told]), strict=True):
        least = _LEAST.get(row["unit"], 0.0)
        row |= {"adjusted_p": chance, "changed": chance <= LEVEL and abs(row["shift"]) > least}
        row["why"] = _why(row) + (
            f"; no more than {' '.join(quantity(least, row['unit']))}" if abs(row["shift"]) <= least else ""
        )
    for row in rows:
        if row["p"] is None:
            row["why"] = f"{_against(row)}: expected {rank_test.LEAST} attempts or more in each run"


def _why(row: Row) -> str:
    low, high = (_signed(end, row["unit"]) for end in row["interval"])
    return (
        f"shift {_signed(row['shift'], row['unit'])}, 95 % interval {low} to {high}, {_against(row)}, "
        f"p {row['p']:.2g}, adjusted {row['adjusted_p']:.2g}"
    )


def _against(row: Row) -> str:
    first, second = row["attempts"]
    return f"{first} against {second}"


def _signed(value: float, unit: str) -> str:
    return f"{'-' if value < 0 else '+' if value > 0 else ''}{' '.join(quantity(abs(value), unit))}"


def text(found: dict[str, Any]) -> str:
    """For a person, as Markdown."""
    before, after = found["before"], found["after"]
    lines = [f"# {before['run']} ({before['verdict']}) to {after['run']} ({after['verdict']}): {found['result']}", ""]
    lines += [f"- other {row['what']}: {row['before']}, then {row['after']}" for row in found["setup"]]
    lines += [f"- only in the first: {name}" for name in found["gone"]]
    lines += [f"- only in the second: {name}" for name in found["added"]]
    lines += [f"- kernel only in one: {name}" for name in found["kernels_not_in_both"]]
    lines += [f"- not compared: {_line(said)}" for said in found["one_sided"]]
    lines += ["", "## Changed", ""] if lines[-1] else ["## Changed", ""]
    lines += [
        f"- {_where(row)}: {row['before']}, then **{row['after']}**: {_line(row['reason'])}"
        for row in found["verdicts"]
    ]
    lines += [f"- {_row(row)}" for row in found["measures"]]
    if not (found["verdicts"] or found["measures"]):
        lines.append(_nothing(found))
    for title, rows in (("Within chance", found["ignored"]), ("Nothing can be told", found["untold"])):
        if rows:
            lines += ["", f"## {title} ({len(rows)})", "", *(f"- {_row(row)}" for row in rows)]
    return "\n".join(map(one_line, lines)) + "\n"


def _nothing(found: dict[str, Any]) -> str:
    if found["result"] == UNCHANGED:
        return "Nothing, beyond chance."
    measures = len(found["ignored"]) + len(found["untold"])
    if not measures and not found["same"]:
        return "Nothing can be told: the two runs have no measure in common."
    if _seen_alone(found):
        return "Nothing, beyond chance, where both came to; nothing can be told of the rest."
    return (
        f"Nothing can be told: a change of one among {measures} measures shows from {found['needed']} attempts in each run on "
        f"(`--repeat {found['needed']}`)."
    )


def _row(row: Row) -> str:
    old, new = (" ".join(quantity(row[when], row["unit"])) for when in ("before", "after"))
    share = f" ({row['change']:+.0%})" if row["change"] is not None else ""
    return f"{_where(row)}: {row['measure']} {old}, then {new}{share}: {row['why']}"


def _where(row: Row) -> str:
    return f"{row['case']} on {row['kernel']}" if row["kernel"] else str(row["case"])


def _line(text: str) -> str:
    return text.splitlines()[0] if text else ""
