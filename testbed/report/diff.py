"""Compares two runs: what changed beyond chance and by how much, and what cannot be decided. Pure.

Each measure of a case on a kernel is a sample in each run, of one value for each attempt. The exact test of Mann and
Whitney says whether two samples differ, the adjustment of Benjamini and Hochberg over all measures how many of the
differences may be chance, and the shift of Hodges and Lehmann by how much (`rank_test`). How often a case passed is one
more row (`pass_rates`). Verdicts are compared as they are.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from testbed.report import pass_rates, rank_test
from testbed.report.comparison import Comparison, Row, RunHead, SetupChange, VerdictChange
from testbed.report.markdown import one_line
from testbed.report.schema import Case, Document
from testbed.report.wording import is_judged_alone, quantity

# The share of the reported changes that is expected to be chance.
LEVEL = 0.05
# Smaller shifts are no change, however regular.
_LEAST = {"bytes": 65536.0, "s": 0.05}
_HOW_FAR = "how far it came"
CHANGED, UNCHANGED, UNKNOWN = "changed", "unchanged", "nothing can be told"
EXIT_CODES = {UNCHANGED: 0, CHANGED: 1, UNKNOWN: 3}


def compare(before: Document, after: Document) -> Comparison:
    """Compare two runs of scenarios."""
    old, new = ({case.name: case for case in document.scenarios} for document in (before, after))
    both = [name for name in new if name in old]
    sides = [side for side in after.kernels if side in before.kernels]
    pairs = [(old[name], new[name], side) for name in both for side in sides if _have(side, old[name], new[name])]
    measured = [row for pair in pairs for row in _rows(*pair)]
    alone = tuple(side for side in sides if is_judged_alone(before) and is_judged_alone(after))
    rows = _judge(
        [
            *(row for row in measured if row is not None),
            *(row for name in both for row in pass_rates.rows(old[name], new[name], alone)),
        ]
    )
    comparison = Comparison(
        before=_head(before),
        after=_head(after),
        setup=tuple(_setup(before, after)),
        added=tuple(name for name in new if name not in old),
        gone=tuple(name for name in old if name not in new),
        kernels_not_in_both=tuple(sorted({*before.kernels} ^ {*after.kernels})),
        verdicts=tuple(change for name in both for change in _verdicts(old[name], new[name], alone)),
        one_sided=tuple(text for pair in pairs for text in _one_sided(*pair)),
        level=LEVEL,
        needed=_needed(len(rows)),
        same=measured.count(None),
        measures=tuple(row for row in rows if row.changed),
        ignored=tuple(row for row in rows if row.changed is False),
        untold=tuple(row for row in rows if row.changed is None),
    )
    return replace(comparison, result=_result(comparison))


def _have(side: str, *cases: Case) -> bool:
    return all(side in case.sides for case in cases)


def _result(comparison: Comparison) -> str:
    if comparison.verdicts or comparison.measures:
        return CHANGED
    # The cases that a partial run did not reach are unknown.
    complete = all(change.what != _HOW_FAR for change in comparison.setup)
    complete = complete and not (
        comparison.gone or comparison.added or comparison.kernels_not_in_both or comparison.one_sided
    )
    return UNCHANGED if complete and _would_show(comparison) else UNKNOWN


def _would_show(comparison: Comparison) -> bool:
    """Return whether a change of any one measure would have shown, even if no other measure changed."""
    if comparison.untold or not (comparison.ignored or comparison.same):
        return False
    return all(rank_test.least_p(*row.attempts) * len(comparison.ignored) <= LEVEL for row in comparison.ignored)


def _needed(measures: int) -> int:
    """Return how many attempts in each run can show a change of one of so many measures, if no other changed."""
    return next(size for size in range(rank_test.LEAST, 1000) if rank_test.least_p(size, size) * measures <= LEVEL)


def _head(document: Document) -> RunHead:
    return RunHead(run=document.run, verdict=document.verdict, cases=len(document.scenarios))


def _setup(before: Document, after: Document) -> Iterator[SetupChange]:
    """Find the differences of what the two runs ran on, and how far they came if one is partial."""
    if before.partial or after.partial:
        old, new = (str(document.partial or "to its end") for document in (before, after))
        yield SetupChange(what=_HOW_FAR, before=old, after=new)
    for side, kernel in after.kernels.items():
        was = before.kernels.get(side)
        if was and was.sha256 != kernel.sha256:
            yield SetupChange(
                what=f"kernel {side}",
                before=f"{was.release} {was.sha256[:12]}",
                after=f"{kernel.release} {kernel.sha256[:12]}",
            )
    if before.image.sha256 != after.image.sha256:
        old, new = (f"{document.image.name} {document.image.sha256[:12]}" for document in (before, after))
        yield SetupChange(what="guest image", before=old, after=new)
    for key in ("qemu", "qemu_sha256", "accelerator", "kernel", "cores"):
        old, new = (str(getattr(document.host, key)) for document in (before, after))
        if old != new and old and new:
            yield SetupChange(what=f"host {key}", before=old, after=new)
    if before.topology and after.topology and before.topology != after.topology:
        yield SetupChange(what="topology", before="another", after="another")


def _rows(old: Case, new: Case, side: str) -> Iterator[Row | None]:
    """Make a row for each measure that a case has on a kernel in both runs; None for one that is equal in all
    attempts."""
    for name, measure in new.sides[side].measures.items():
        was = old.sides[side].measures.get(name)
        if was is None or was.unit != measure.unit:
            continue
        first, second = _values(old, side, name), _values(new, side, name)
        comparable = min(len(first), len(second)) >= rank_test.LEAST
        if comparable and len({*first, *second}) == 1:
            yield None
            continue
        row = Row(
            case=new.name,
            kernel=side,
            measure=name,
            unit=measure.unit,
            attempts=(len(first), len(second)),
            before=statistics.median(first),
            after=statistics.median(second),
        )
        if comparable:
            shift = rank_test.shift(first, second)
            row = replace(
                row,
                shift=shift.estimate,
                interval=(shift.low, shift.high),
                change=round(shift.estimate / abs(row.before), 4) if row.before else None,
                p=rank_test.p_value(first, second),
            )
        yield row


def _verdicts(old: Case, new: Case, alone: tuple[str, ...]) -> Iterator[VerdictChange]:
    """Find the verdicts of a case that differ: its own, or those of the kernels that are judged alone."""
    pairs: list[tuple[str, str | None, str | None, str | None]] = [("", old.verdict, new.verdict, new.reason)]
    if alone:
        pairs = [(side, old.sides[side].verdict, new.sides[side].verdict, new.sides[side].judgement) for side in alone]
    for kernel, was, now, reason in pairs:
        if was != now:
            yield VerdictChange(case=new.name, kernel=kernel, before=str(was), after=str(now), reason=reason or "")


def _one_sided(old: Case, new: Case, side: str) -> Iterator[str]:
    """Describe measures that a case has in one run only, and a case whose guest was lost in both runs."""
    where = f"{new.name} on {side}"
    first, second = (case.sides[side].measures for case in (old, new))
    if old.verdict == new.verdict == "INFRA":
        yield f"{where}: lost in both runs"
    for name in first | second:
        if name not in first or name not in second:
            yield f"{where}: {name} only in the {'second' if name in second else 'first'}"
        elif first[name].unit != second[name].unit:
            yield f"{where}: {name} in {first[name].unit}, then in {second[name].unit}"


def _values(case: Case, side: str, name: str) -> list[float]:
    """Return a measure's value in each attempt that has it."""
    measures = [attempt.sides[side].measures for attempt in case.all_attempts if side in attempt.sides]
    return [float(of_attempt[name].value) for of_attempt in measures if name in of_attempt]


def _judge(rows: Sequence[Row]) -> list[Row]:
    """Decide for each row that was compared whether it changed, and add to each row the reason."""
    p_values = [row.p for row in rows if row.p is not None]
    adjusted = iter(rank_test.adjust_p_values(p_values))
    return [
        _judged(row, next(adjusted))
        if row.p is not None
        else replace(row, why=f"{_sizes(row)}: expected {rank_test.LEAST} attempts or more in each run")
        for row in rows
    ]


def _judged(row: Row, adjusted_p: float) -> Row:
    least, shift = _LEAST.get(row.unit, 0.0), abs(row.shift or 0.0)
    row = replace(row, adjusted_p=adjusted_p, changed=adjusted_p <= LEVEL and shift > least)
    too_small = f"; no more than {' '.join(quantity(least, row.unit))}" if shift <= least else ""
    return replace(row, why=_why(row) + too_small)


def _why(row: Row) -> str:
    assert row.shift is not None and row.interval is not None
    low, high = (_signed(end, row.unit) for end in row.interval)
    return (
        f"shift {_signed(row.shift, row.unit)}, 95 % interval {low} to {high}, {_sizes(row)}, "
        f"p {row.p:.2g}, adjusted {row.adjusted_p:.2g}"
    )


def _sizes(row: Row) -> str:
    first, second = row.attempts
    return f"{first} against {second}"


def _signed(value: float, unit: str) -> str:
    return f"{'-' if value < 0 else '+' if value > 0 else ''}{' '.join(quantity(abs(value), unit))}"


def text(comparison: Comparison) -> str:
    """Format a comparison as Markdown."""
    before, after = comparison.before, comparison.after
    lines = [f"# {before.run} ({before.verdict}) to {after.run} ({after.verdict}): {comparison.result}", ""]
    lines += [f"- other {change.what}: {change.before}, then {change.after}" for change in comparison.setup]
    lines += [f"- only in the first: {name}" for name in comparison.gone]
    lines += [f"- only in the second: {name}" for name in comparison.added]
    lines += [f"- kernel only in one: {name}" for name in comparison.kernels_not_in_both]
    lines += [f"- not compared: {_first_line(reason)}" for reason in comparison.one_sided]
    lines += ["", "## Changed", ""] if lines[-1] else ["## Changed", ""]
    lines += [
        f"- {_where(change)}: {change.before}, then **{change.after}**: {_first_line(change.reason)}"
        for change in comparison.verdicts
    ]
    lines += [f"- {_row(row)}" for row in comparison.measures]
    if not (comparison.verdicts or comparison.measures):
        lines.append(_nothing(comparison))
    for title, rows in (("Within chance", comparison.ignored), ("Nothing can be told", comparison.untold)):
        if rows:
            lines += ["", f"## {title} ({len(rows)})", "", *(f"- {_row(row)}" for row in rows)]
    return "\n".join(map(one_line, lines)) + "\n"


def _nothing(comparison: Comparison) -> str:
    if comparison.result == UNCHANGED:
        return "Nothing, beyond chance."
    measures = len(comparison.ignored) + len(comparison.untold)
    if not measures and not comparison.same:
        return "Nothing can be told: the two runs have no measure in common."
    if _would_show(comparison):
        return "Nothing, beyond chance, where both came to; nothing can be told of the rest."
    return (
        f"Nothing can be told: a change of one among {measures} measures shows from {comparison.needed} attempts "
        f"in each run on (`--repeat {comparison.needed}`)."
    )


def _row(row: Row) -> str:
    old, new = (" ".join(quantity(value, row.unit)) for value in (row.before, row.after))
    share = f" ({row.change:+.0%})" if row.change is not None else ""
    return f"{_where(row)}: {row.measure} {old}, then {new}{share}: {row.why}"


def _where(row: Row | VerdictChange) -> str:
    return f"{row.case} on {row.kernel}" if row.kernel else row.case


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
