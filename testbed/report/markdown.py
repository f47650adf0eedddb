"""A run's `results.json` as Markdown, to be kept beside the code: what ran, on what, its outcome, and the command that does it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from testbed.guest.channels.kernel_log import clean
from testbed.report import stack_svg, wording


def markdown(document: dict[str, Any]) -> str:
    """The whole text. A pair has a verdict a case; kernels that were each judged alone have one a column."""
    sides = list(document["kernels"])
    each = wording.is_judged_alone(document)
    host = document["host"]
    left_out = wording.omitted_cases(document)
    qemu = f"{host['qemu']} ({host['accelerator']})"
    head = [
        f"# {'Scenario by kernel' if each else 'Base against patched'}: {document['verdict']}{', partial' if left_out else ''}",
        "",
        *([f"**{cell(left_out)}**", ""] if left_out else []),
        f"    {_command(document['command'])}",
        "",
        f"Run {cell(document['run'])}: {_cases(document)} in {document['took_s']:.0f} s,",
        f"{document['guest_seconds']:.0f} s of guests, on {host['cores']} cores with Linux {cell(host['kernel'])},",
        f"QEMU {cell(qemu)}.",
        "",
        "| kernel | release | from |",
        "|---|---|---|",
        *(
            f"| {cell(side)} | {cell(kernel['release'])} | {cell(kernel['origin'])} |"
            for side, kernel in document["kernels"].items()
        ),
        "",
        "What the kernel accounted for and what the emulated disk counted, or what was resident in memory: "
        f"{cell(_balances(document, sides))}.",
        "",
        f"Lines of the kernels' logs that do not belong to a case: {_unexpected(document, sides)}.",
        "",
    ]
    columns = [*map(cell, sides), *([] if each else ["verdict", "reason"])]
    head += [f"| case | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    rows = [_row(case, sides, each) for case in document["scenarios"]]
    return "\n".join([*head, *rows, "", *_stood(document, sides)]) + "\n"


def _stood(document: dict[str, Any], sides: list[str]) -> Iterator[str]:
    """The stack of each case, or one line where none is known, all for the same reason."""
    yield from ("## What stood while the claims were measured", "")
    found = [
        (case["name"], where, stack)
        for case in document["scenarios"]
        for where, stack in stack_svg.group_by_stack(case, sides)
    ]
    unknown = {stack for _, _, stack in found if isinstance(stack, str)}
    if len(unknown) == 1 and all(isinstance(stack, str) for _, _, stack in found):
        yield cell(f"It is not known: {unknown.pop()}.")
        return
    yield from ("Read back from the guests.", "", "| case | kernel | stack |", "|---|---|---|")
    for name, where, stack in found:
        yield f"| {cell(name)} | {cell(', '.join(where))} | {cell(stack_svg.describe_stack(stack))} |"


def _cases(document: dict[str, Any]) -> str:
    count = len(document["scenarios"])
    return f"{count} case{'' if count == 1 else 's'}"


def _command(words: list[str]) -> str:
    return one_line(shlex.join(["./tb", *words[1:]]))


def _row(case: dict[str, Any], sides: list[str], each: bool) -> str:
    cells = [_each(case[side]) if each else _measures(case[side]) for side in sides]
    if not each:
        passed = f" ({case['pass_rate']:.0%} of {len(case['attempts'])})" if case.get("pass_rate") is not None else ""
        cells += [f"{case['verdict']}{passed}", cell(wording.first_line(case["reason"]))]
    return f"| {cell(case['name'])} | {' | '.join(cells)} |"


def _each(side: dict[str, Any]) -> str:
    return f"**{side['verdict']}** {cell(wording.first_line(side['judgement']))}"


def _measures(side: dict[str, Any]) -> str:
    said = [f"{name} {measure['value']} {measure['unit']}" for name, measure in side["measures"].items()]
    said += [f"timeline: never began: {act}" for act in side.get("timeline_missed", ())]
    return cell("; ".join(said)) or "-"


def _balances(document: dict[str, Any], sides: list[str]) -> str:
    found = [
        (
            balance["share"],
            f"{case['name']} on {side}: {balance['what']}, {balance['difference']} bytes ({balance['share']:.2%})",
        )
        for case in document["scenarios"]
        for side in sides
        for balance in case[side]["balances"]
    ]
    if not found:
        return "not compared"
    beyond = [said for share, said in found if share > 0.01]
    if beyond:
        return f"of {len(found)} comparisons {len(beyond)} differ by more than 1 %: {'; '.join(beyond)}"
    return f"{len(found)} comparisons, the largest difference is {max(found)[1]}"


def _unexpected(document: dict[str, Any], sides: list[str]) -> str:
    return (
        "; ".join(
            cell(f"{case['name']} on {said}")
            for case in document["scenarios"]
            for said in wording.unexpected(case, sides)
        )
        or "none"
    )


def one_line(text: str) -> str:
    """Text that begins no line of its own, and steers no terminal."""
    return clean(text.replace("\n", " "), len(text))


def cell(text: str) -> str:
    """Text that can neither break out of its cell nor steer a terminal: a guest may have written it."""
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
