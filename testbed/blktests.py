"""What one test in the format of blktests says of itself. Pure.

`./check GROUP/NNN` leaves results/DEVICE/GROUP/NNN, a line for each key with a tab before its value (`status`, `reason`, `exit_status`,
`runtime`), and of a test that it did not run prints `GROUP/NNN ... [not run]` and why, indented.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

_PRINTED = re.compile(r"^(\S+/\S+)\s.*\[([a-z ]+)\]\s*$")
_REASONS = {"output": "its output differs from what is expected", "dmesg": "something in the kernel's log", "exit": "it exited with status"}
# Of what a test printed, or of how its output differs.
_MOST_LINES = 20


class Status(enum.Enum):
    """How a test ended; HANG and LOST are the guest's doing, ERROR that of the suite."""

    PASS = "pass"  # noqa: S105 - a word, no password
    FAIL = "fail"
    SKIP = "skip"
    HANG = "hang"
    LOST = "lost"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One test. `details`: lines that a person wants to see of one that did not pass."""

    test: str
    status: Status
    reason: str = ""
    runtime: str = ""
    details: tuple[str, ...] = ()


def outcome(test: str, records: Iterable[str], printed: str, difference: str = "") -> Outcome:
    """What `./check TEST` came to: by the file it left for each device, and by what it printed. The gravest counts.

    `difference`: of a failed one's output from what is expected.
    """
    found = [_of_record(test, text, difference or printed) for text in records if text.strip()]
    if found:
        return min(found, key=lambda one: _GRAVEST.index(one.status))
    lines = printed.splitlines()
    for number, line in enumerate(lines):
        said = _PRINTED.match(line)
        if said and said[2] == "not run":
            return Outcome(test=test, status=Status.SKIP, reason="; ".join(_indented(lines[number + 1 :])) or "it does not say why")
    return Outcome(test=test, status=Status.ERROR, reason="./check left no result of it", details=_some(printed))


_GRAVEST = (Status.LOST, Status.HANG, Status.ERROR, Status.FAIL, Status.PASS, Status.SKIP)


def _of_record(test: str, text: str, details: str) -> Outcome:
    said = dict(line.partition("\t")[::2] for line in text.splitlines())
    status, reason, runtime = said.get("status", ""), said.get("reason", ""), said.get("runtime", "")
    if status == "pass":
        return Outcome(test=test, status=Status.PASS, runtime=runtime)
    if status == "not run":
        return Outcome(test=test, status=Status.SKIP, reason=reason or "it does not say why")
    if status == "fail":
        why = _REASONS.get(reason, reason)
        if reason == "exit":
            why += f" {said.get('exit_status', '?')}"
        return Outcome(test=test, status=Status.FAIL, reason=why, runtime=runtime, details=_some(details))
    why = f"expected a status of pass, fail or not run, got {status!r}"
    return Outcome(test=test, status=Status.ERROR, reason=why, details=_some(text))


def _indented(lines: list[str]) -> list[str]:
    found = []
    for line in lines:
        if not line.startswith("    "):
            break
        found.append(line.strip())
    return found


def _some(text: str) -> tuple[str, ...]:
    lines = tuple(line.rstrip() for line in text.splitlines() if line.strip())
    return lines if len(lines) <= _MOST_LINES else (*lines[:_MOST_LINES], f"... {len(lines) - _MOST_LINES} lines more")
