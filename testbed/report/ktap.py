"""A run's results as KTAP, version 1 (Documentation/dev-tools/ktap.rst): a subtest for each case, and in it one for each kernel.

A case whose verdict is PASS is `ok`, a skipped one is `ok ... # SKIP reason`; any other is `not ok`, with its verdict in a diagnostic line
before it. A kernel of a pair is `ok` where it shows what is expected of it. A partial run has one more subtest, which is `not ok`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from testbed.guest.channels.kernel_log import clean
from testbed.report import wording

_PAIR = {"base": "open", "patched": "closed"}


def ktap(document: dict[str, Any]) -> str:
    """The whole text."""
    lines = [
        "KTAP version 1",
        f"# run: {_text(document['run'])}, verdict: {document['verdict']}",
        "1..1",
        *_indented(_suite(document)),
    ]
    lines.append(_result(document["verdict"], 1, "testbed", wording.summary(document)))
    return "\n".join(lines) + "\n"


def _suite(document: dict[str, Any]) -> Iterator[str]:
    cases = document["scenarios"]
    yield "KTAP version 1"
    for side, kernel in document["kernels"].items():
        yield f"# kernel {_text(side)}: {_text(kernel['release'])} {_text(kernel['sha256'])}"
    image, host = document["image"], document["host"]
    yield f"# image {_text(image['name'])}: {_text(image['sha256'])}"
    yield f"# qemu {_text(host['qemu'])} ({host['accelerator']}): {_text(host.get('qemu_sha256', ''))}"
    left_out = wording.omitted_cases(document)
    yield f"1..{len(cases) + bool(left_out)}"
    for number, case in enumerate(cases, 1):
        yield from _indented(_case(document, case))
        if case["verdict"] not in ("PASS", "SKIP"):
            yield from (f"# {case['verdict']}: {_text(line)}" for line in case["reason"].splitlines()[:20])
        yield _result(case["verdict"], number, case["name"], case["reason"])
    if left_out:
        yield f"# {_text(left_out)}"
        yield _result("INFRA", len(cases) + 1, "the whole run", left_out)


def _case(document: dict[str, Any], case: dict[str, Any]) -> Iterator[str]:
    sides = list(document["kernels"])
    yield "KTAP version 1"
    yield f"1..{len(sides)}"
    for number, side in enumerate(sides, 1):
        done = case[side]
        yield from (
            f"# {_text(name)}: {measure['value']} {_text(measure['unit'])}"
            for name, measure in done["measures"].items()
        )
        for control in done["controls"]:
            held = "holds" if control["holds"] else f"expected {control['expected']}, got {control['got']}"
            yield f"# control {_text(control['name'])}: {_text(held)}"
        yield from (f"# kernel log: {_text(said)}" for said in wording.unexpected(case, [side]))
        yield _result(_verdict(side, case), number, side, done["reason"])


def _verdict(side: str, case: dict[str, Any]) -> str:
    """A kernel's own; of a pair, whether it shows what is expected of it and its controls hold."""
    done = case[side]
    if done.get("verdict"):
        return str(done["verdict"])
    if done["claim"] is None:
        return "SKIP" if case["verdict"] == "SKIP" else "INFRA"
    held = all(control["holds"] for control in done["controls"])
    return "PASS" if held and done["claim"] == _PAIR.get(side) else "FAIL"


def _result(verdict: str, number: int, name: str, reason: str) -> str:
    line = f"{'ok' if verdict in ('PASS', 'SKIP') else 'not ok'} {number} {_text(name)}"
    return f"{line} # SKIP {_text(wording.first_line(reason))}" if verdict == "SKIP" else line


def _text(text: str) -> str:
    """On one line, and with nothing that begins a directive."""
    return clean(" ".join(text.split())).replace("#", "")


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
