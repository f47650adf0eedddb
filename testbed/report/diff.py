"""Two runs beside each other: what changed beyond noise, and what was put down to noise and why. Pure.

Where a measure was taken several times in either run, it has changed if the two ranges do not overlap. Where it was taken once in both, it
has changed if it moved by more than what its unit is known to vary by; the limits are below, with their reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from testbed.report.words import quantity

Range = tuple[float, float]
# By the beginning of a unit: how much of the larger value a single measurement may move. Bytes are counted; readahead and metadata are
# at most a twentieth. Times and rates under emulation vary by a half from one hour to the next. Kills vary from 3 to 25 where there are any
# (docs/scenarios.md), so that only their coming or going counts; the same holds for other small counts.
_LIMITS = {"bytes/s": 0.5, "bytes": 0.05, "IOPS": 0.5, "s": 0.5, "requests": 0.25}
_COUNTED = 1.0
# Differences below that are none, whatever their share.
_LEAST = {"bytes": 65536.0, "s": 0.05}


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What `testbed report --diff --json` prints."""
    old, new = ({case["name"]: case for case in document["scenarios"]} for document in (before, after))
    sides = [side for side in after["kernels"] if side in before["kernels"]]
    both = [name for name in new if name in old]
    judged = [_judged(old[name], new[name], side, before, after) for name in both for side in sides]
    measures = [row for rows in judged for row in rows]
    return {
        "before": _run(before),
        "after": _run(after),
        "setup": list(_setup(before, after)),
        "added": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
        "kernels_not_in_both": sorted({*before["kernels"]} ^ {*after["kernels"]}),
        "verdicts": [
            {"case": name, "before": old[name]["verdict"], "after": new[name]["verdict"], "reason": new[name]["reason"]}
            for name in both
            if old[name]["verdict"] != new[name]["verdict"]
        ],
        "measures": [row for row in measures if row["changed"]],
        "ignored": [row for row in measures if not row["changed"]],
    }


def changed(found: dict[str, Any]) -> bool:
    """Whether anything did, of what was run in both."""
    return bool(found["verdicts"] or found["measures"])


def _run(document: dict[str, Any]) -> dict[str, Any]:
    return {"run": document["run"], "verdict": document["verdict"], "cases": len(document["scenarios"])}


def _setup(before: dict[str, Any], after: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What the two ran on, where it is not the same."""
    pairs = [(f"kernel {side}", "release", before["kernels"].get(side), after["kernels"].get(side)) for side in after["kernels"]]
    pairs.append(("guest image", "name", before["image"], after["image"]))
    for what, name, old, new in pairs:
        if old and new and old["sha256"] != new["sha256"]:
            yield {"what": what, "before": f"{old[name]} {old['sha256'][:12]}", "after": f"{new[name]} {new['sha256'][:12]}"}
    for key in ("qemu", "qemu_sha256", "accelerator", "kernel", "cores"):
        old, new = (str(document["host"].get(key, "")) for document in (before, after))
        if old != new and old and new:
            yield {"what": f"host {key}", "before": old, "after": new}
    if before.get("topology") and after.get("topology") and before["topology"] != after["topology"]:
        yield {"what": "topology", "before": "another", "after": "another"}


def _judged(old: dict[str, Any], new: dict[str, Any], side: str, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each measure of one case on one kernel that moved at all."""
    rows = []
    for name, measure in new[side]["measures"].items():
        was = old[side]["measures"].get(name)
        if was is None or was["unit"] != measure["unit"]:
            continue
        ranges = [_range(case, side, name) for case in (old, new)]
        values = [_median(case, side, name) for case in (old, new)]
        if values[0] == values[1] and ranges[0] == ranges[1]:
            continue
        moved, why = _moved(ranges, values, measure["unit"])
        rows.append(
            {
                "case": new["name"],
                "kernel": side,
                "measure": name,
                "unit": measure["unit"],
                "before": values[0],
                "after": values[1],
                "change": round((values[1] - values[0]) / abs(values[0]), 4) if values[0] else None,
                "changed": moved,
                "why": why,
            }
        )
    return rows


def _median(case: dict[str, Any], side: str, name: str) -> float:
    spread = ((case.get("spread") or {}).get(side) or {}).get(name)
    return float(spread["median"] if spread else case[side]["measures"][name]["value"])


def _range(case: dict[str, Any], side: str, name: str) -> Range | None:
    """Of several attempts."""
    spread = ((case.get("spread") or {}).get(side) or {}).get(name)
    return (float(spread["min"]), float(spread["max"])) if spread else None


def _moved(ranges: list[Range | None], values: list[float], unit: str) -> tuple[bool, str]:
    """Whether it is a change, and why or why not."""
    if any(ranges):
        (low, high), (low_after, high_after) = (
            one if one is not None else (value, value) for one, value in zip(ranges, values, strict=True)
        )
        apart = high < low_after or high_after < low
        said = f"{_said(low, high, unit)} and {_said(low_after, high_after, unit)}"
        return apart, f"the attempts' ranges {'do not overlap' if apart else 'overlap'}: {said}"
    old, new = values
    most, difference = max(abs(old), abs(new)), abs(new - old)
    least = _LEAST.get(unit, 0.0)
    if difference <= least:
        return False, f"no more than {' '.join(quantity(least, unit))}"
    limit = next((share for start, share in _LIMITS.items() if unit.startswith(start)), _COUNTED)
    share = difference / most
    if limit == _COUNTED:
        moved = (old == 0) != (new == 0)
        return moved, "came or went" if moved else "a count that was taken once, and is there in both"
    return share > limit, f"{share:.0%} of the larger one, taken once; the limit for {unit} is {limit:.0%}"


def _said(low: float, high: float, unit: str) -> str:
    return " ".join(quantity(low, unit)) if low == high else f"{' '.join(quantity(low, unit))} to {' '.join(quantity(high, unit))}"


def text(found: dict[str, Any]) -> str:
    """For a person, as Markdown."""
    before, after = found["before"], found["after"]
    lines = [f"# {before['run']} ({before['verdict']}) to {after['run']} ({after['verdict']})", ""]
    lines += [f"- other {row['what']}: {row['before']}, then {row['after']}" for row in found["setup"]]
    lines += [f"- only in the first: {name}" for name in found["gone"]]
    lines += [f"- only in the second: {name}" for name in found["added"]]
    lines += [f"- kernel only in one: {name}" for name in found["kernels_not_in_both"]]
    lines += ["", "## Changed", ""] if lines[-1] else ["## Changed", ""]
    lines += [f"- {row['case']}: {row['before']}, then **{row['after']}**: {_line(row['reason'])}" for row in found["verdicts"]]
    lines += [f"- {_row(row)}" for row in found["measures"]]
    if not changed(found):
        lines.append("Nothing, beyond noise.")
    if found["ignored"]:
        lines += ["", f"## Put down to noise ({len(found['ignored'])})", "", *(f"- {_row(row)}" for row in found["ignored"])]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    old, new = (" ".join(quantity(row[when], row["unit"])) for when in ("before", "after"))
    share = f" ({row['change']:+.0%})" if row["change"] is not None else ""
    return f"{row['case']} on {row['kernel']}: {row['measure']} {old}, then {new}{share}: {row['why']}"


def _line(text: str) -> str:
    return text.splitlines()[0] if text else ""
