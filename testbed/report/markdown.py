"""Formats a run's results as Markdown, to be kept beside the code: what ran, on what, the outcome, and how to repeat
it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from testbed.guest.channels.kernel_log import clean
from testbed.report import stack_svg, wording
from testbed.report.schema import Case, Document, Side


def markdown(document: Document) -> str:
    """Return the whole text. A pair has one verdict for each case; kernels judged alone have one in each column."""
    sides = list(document.kernels)
    alone = wording.is_judged_alone(document)
    omitted = wording.omitted_cases(document)
    columns = [*map(cell, sides), *([] if alone else ["verdict", "reason"])]
    title = "Scenario by kernel" if alone else "Base against patched"
    lines = [
        f"# {title}: {document.verdict}{', partial' if omitted else ''}",
        "",
        *([f"**{cell(omitted)}**", ""] if omitted else []),
        *_setup(document),
        "",
        "What the kernel accounted for and what the emulated disk counted, or what was resident in memory: "
        f"{cell(_balances(document))}.",
        "",
        f"Lines of the kernels' logs that do not belong to a case: {_unexpected_lines(document)}.",
        "",
        f"| case | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(_row(case, sides, alone) for case in document.scenarios),
        "",
        *_stacks(document, sides),
    ]
    return "\n".join(lines) + "\n"


def _setup(document: Document) -> Iterator[str]:
    """The command, the host and the kernels."""
    host, count = document.host, len(document.scenarios)
    qemu = f"{host.qemu} ({host.accelerator})"
    yield f"    {_command(document.command)}"
    yield ""
    yield f"Run {cell(document.run)}: {count} case{'' if count == 1 else 's'} in {document.took_s:.0f} s,"
    yield f"{document.guest_seconds:.0f} s of guests, on {host.cores} cores with Linux {cell(host.kernel)},"
    yield f"QEMU {cell(qemu)}."
    yield from ("", "| kernel | release | from |", "|---|---|---|")
    for side, kernel in document.kernels.items():
        yield f"| {cell(side)} | {cell(kernel.release)} | {cell(kernel.origin)} |"


def _stacks(document: Document, sides: list[str]) -> Iterator[str]:
    """The stack of each case, or one line where all are unknown for the same reason."""
    yield from ("## Stacks while the claims were measured", "")
    stacks = [
        (case.name, kernels, stack)
        for case in document.scenarios
        for kernels, stack in stack_svg.group_by_stack(case, sides)
    ]
    unknown = {stack for _, _, stack in stacks if isinstance(stack, str)}
    if len(unknown) == 1 and all(isinstance(stack, str) for _, _, stack in stacks):
        yield cell(f"It is not known: {unknown.pop()}.")
        return
    yield from ("Read back from the guests.", "", "| case | kernel | stack |", "|---|---|---|")
    for name, kernels, stack in stacks:
        yield f"| {cell(name)} | {cell(', '.join(kernels))} | {cell(stack_svg.describe_stack(stack))} |"


def _command(argv: Sequence[str]) -> str:
    return one_line(shlex.join(["./tb", *argv[1:]]))


def _row(case: Case, sides: list[str], alone: bool) -> str:
    cells = [_judgement(case.sides[side]) if alone else _measures(case.sides[side]) for side in sides]
    if not alone:
        passed = f" ({case.pass_rate:.0%} of {len(case.all_attempts)})" if case.pass_rate is not None else ""
        cells += [f"{case.verdict}{passed}", cell(wording.first_line(case.reason))]
    return f"| {cell(case.name)} | {' | '.join(cells)} |"


def _judgement(side: Side) -> str:
    return f"**{side.verdict}** {cell(wording.first_line(side.judgement or ''))}"


def _measures(side: Side) -> str:
    parts = [f"{name} {measure.value} {measure.unit}" for name, measure in side.measures.items()]
    parts += [f"timeline: never began: {action}" for action in side.timeline_missed]
    return cell("; ".join(parts)) or "-"


def _balances(document: Document) -> str:
    comparisons = [
        (
            balance.share,
            f"{case.name} on {side}: {balance.what}, {balance.difference} bytes ({balance.share:.2%})",
        )
        for case in document.scenarios
        for side in document.kernels
        for balance in case.sides[side].balances
    ]
    if not comparisons:
        return "not compared"
    large = [text for share, text in comparisons if share > wording.LARGE_DIFFERENCE]
    if large:
        return f"of {len(comparisons)} comparisons {len(large)} differ by more than 1 %: {'; '.join(large)}"
    return f"{len(comparisons)} comparisons, the largest difference is {max(comparisons)[1]}"


def _unexpected_lines(document: Document) -> str:
    lines = (
        cell(f"{case.name} on {line}")
        for case in document.scenarios
        for line in wording.unexpected_lines(case, list(document.kernels))
    )
    return "; ".join(lines) or "none"


def one_line(text: str) -> str:
    """Return the text on one line and without terminal control sequences."""
    return clean(text.replace("\n", " "), len(text))


def cell(text: str) -> str:
    """Escape a text for a table cell: a guest may have written it, and it must neither end the cell nor steer a
    terminal."""
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
