"""Formats a run's results as KTAP, version 1 (Documentation/dev-tools/ktap.rst): a subtest for each case, and in it one
for each kernel.

A case whose verdict is PASS is `ok`, a skipped one is `ok ... # SKIP reason`; any other is `not ok`, with its verdict
in a diagnostic line before it. A kernel of a pair is `ok` if it shows what is expected of it. A partial run has one
more subtest, which is `not ok`.
"""

from __future__ import annotations

from collections.abc import Iterator

from testbed.guest.channels.kernel_log import clean
from testbed.report import wording
from testbed.report.schema import Case, Document
from testbed.scenarios.verdict import PAIR_GAPS

_PAIR = {name: gap.name.lower() for name, gap in PAIR_GAPS.items()}


def ktap(document: Document) -> str:
    """Return the text of results.ktap."""
    lines = [
        "KTAP version 1",
        f"# run: {_text(document.run)}, verdict: {document.verdict}",
        "1..1",
        *_indented(_suite(document)),
    ]
    lines.append(_result(document.verdict, 1, "testbed", wording.summary(document)))
    return "\n".join(lines) + "\n"


def _suite(document: Document) -> Iterator[str]:
    cases = document.scenarios
    yield "KTAP version 1"
    for side, kernel in document.kernels.items():
        yield f"# kernel {_text(side)}: {_text(kernel.release)} {_text(kernel.sha256)}"
    image, host = document.image, document.host
    yield f"# image {_text(image.name)}: {_text(image.sha256)}"
    yield f"# qemu {_text(host.qemu)} ({host.accelerator}): {_text(host.qemu_sha256)}"
    omitted = wording.omitted_cases(document)
    yield f"1..{len(cases) + bool(omitted)}"
    for number, case in enumerate(cases, 1):
        yield from _indented(_case(case, list(document.kernels)))
        if case.verdict not in ("PASS", "SKIP"):
            yield from (f"# {case.verdict}: {_text(line)}" for line in case.reason.splitlines()[:20])
        yield _result(case.verdict, number, case.name, case.reason)
    if omitted:
        yield f"# {_text(omitted)}"
        yield _result("INFRA", len(cases) + 1, "the whole run", omitted)


def _case(case: Case, kernels: list[str]) -> Iterator[str]:
    yield "KTAP version 1"
    yield f"1..{len(kernels)}"
    for number, name in enumerate(kernels, 1):
        side = case.sides[name]
        for what, measure in side.measures.items():
            yield f"# {_text(what)}: {measure.value} {_text(measure.unit)}"
        for control in side.controls:
            outcome = "holds" if control.holds else f"expected {control.expected}, got {control.got}"
            yield f"# control {_text(control.name)}: {_text(outcome)}"
        yield from (f"# kernel log: {_text(line)}" for line in wording.unexpected_lines(case, [name]))
        yield _result(_verdict(name, case), number, name, side.reason)


def _verdict(name: str, case: Case) -> str:
    """Return a kernel's own verdict; in a pair, whether it shows what is expected of it and its controls hold."""
    side = case.sides[name]
    if side.verdict:
        return side.verdict
    if side.claim is None:
        return "SKIP" if case.verdict == "SKIP" else "INFRA"
    all_hold = all(control.holds for control in side.controls)
    return "PASS" if all_hold and side.claim == _PAIR.get(name) else "FAIL"


def _result(verdict: str, number: int, name: str, reason: str) -> str:
    line = f"{'ok' if verdict in ('PASS', 'SKIP') else 'not ok'} {number} {_text(name)}"
    return f"{line} # SKIP {_text(wording.first_line(reason))}" if verdict == "SKIP" else line


def _text(text: str) -> str:
    """Return the text on one line, without the character that begins a directive."""
    return clean(" ".join(text.split())).replace("#", "")


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
