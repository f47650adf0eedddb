"""What one test in the format of blktests says of itself. Pure.

`./check GROUP/NNN` leaves results/FOLDER/GROUP/NNN for each device and condition that it ran the test for, a line for each key with a tab
before its value (`status`, `reason`, `exit_status`, `runtime`, and what the test has measured). Why it did not run one is only printed,
indented, below a line that ends with `[not run]`; a whole group that does not run leaves nothing but that.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_NOT_RUN = re.compile(r"^(?:\S+/\S+)(?: => (?P<devices>[^([]*[^([\s]))?\s+(?:\((?P<condition>[^)]*)\).*)?\[not run\]\s*$")
# `runtime ... 1.2s`: what is printed in columns between that line and the reasons.
_MEASURED = re.compile(r"^    \S.*\s{2}\.\.\.(\s{2}|\s*$)")
_LACKS = re.compile(r"^\S*check: (\S+) is not available\.", re.MULTILINE)
_FOR_DEVICES = re.compile(r"^\s*(?:function\s+)?test_device(?:_array)?\s*\(\)", re.MULTILINE)
_REASONS = {"output": "its output differs from what is expected", "dmesg": "something in the kernel's log", "exit": "it exited with status"}
_KNOWN = frozenset({"status", "reason", "exit_status", "runtime", "date", "description"})
_NO_DEVICE = "nodev"
# Of what a test printed, or of how its output differs.
_MOST_LINES = 20


class Status(enum.Enum):
    """How a test ended; HANG and LOST are the guest's doing. ERROR: nothing is known, by the suite's, this machine's or our own doing."""

    PASS = "pass"  # noqa: S105 - a word, no password
    FAIL = "fail"
    SKIP = "skip"
    HANG = "hang"
    LOST = "lost"
    ERROR = "error"


# What each makes of a whole suite, the gravest first; it is `skipped` only where everything was.
RESULTS = {
    Status.FAIL: "failed",
    Status.HANG: "failed",
    Status.LOST: "failed",
    Status.ERROR: "no result",
    Status.PASS: "passed",
    Status.SKIP: "skipped",
}


def folder_of(test: str) -> str:
    """What the folder of a test's guest is called."""
    return test.replace("/", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One test, for one of its devices or conditions (`where`), if it has such. `details`: lines that a person wants to see of one that did
    not pass. `measured`: what else it left, such as `read iops`.
    """

    test: str
    status: Status
    where: str = ""
    reason: str = ""
    runtime: str = ""
    details: tuple[str, ...] = ()
    measured: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The test, and for what it was run."""
        return f"{self.test} ({self.where})" if self.where else self.test


@dataclass(frozen=True, slots=True, kw_only=True)
class _Skip:
    """`folders`: where its record may lie."""

    where: str
    folders: frozenset[str]
    reason: str


def outcomes(test: str, left: str, printed: str, source: str, *, devices: bool) -> tuple[Outcome, ...]:
    """What `./check TEST` came to.

    `left`: a folder, the record in it, and how the output differs or what the kernel said, each with a NUL behind it, as often as there are
    records. `printed`: its output and errors. `source`: the test itself. `devices`: whether there are any that it may overwrite.
    """
    skips = list(_skips(printed))
    found: list[Outcome] = []
    told: set[_Skip] = set()
    parts = left.split("\0")
    for folder, record, difference in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        mine = [skip for skip in skips if (folder or _NO_DEVICE) in skip.folders]
        told.update(mine)
        found.append(_of_record(test, folder, record, mine, difference or printed, printed))
    # In the order of printing, each once: a device may be refused twice.
    rest = dict.fromkeys((skip.where, skip.reason) for skip in skips if skip not in told)
    found += [Outcome(test=test, where=where, status=Status.SKIP, reason=reason) for where, reason in rest]
    if found:
        return tuple(found)
    if not devices and _FOR_DEVICES.search(source):
        return (Outcome(test=test, status=Status.SKIP, reason="it is for devices that it may overwrite; --test-disk names them"),)
    return (Outcome(test=test, status=Status.ERROR, reason="./check left no result of it", details=_some(printed)),)


def _skips(printed: str) -> Iterator[_Skip]:
    lines = printed.splitlines()
    for number, line in enumerate(lines):
        said = _NOT_RUN.match(line)
        if said is None:
            continue
        folder = (said["devices"] or _NO_DEVICE).replace(" ", "_")
        condition = re.sub("[ =]", "_", said["condition"] or "")
        reasons = [line.strip() for line in _indented(lines[number + 1 :]) if not _MEASURED.match(line)]
        yield _Skip(
            where=said["devices"] or "",
            folders=frozenset({folder, f"{folder}_{condition}"}),
            reason="; ".join(reasons) or "it does not say why",
        )


def _of_record(test: str, folder: str, record: str, skips: list[_Skip], details: str, printed: str) -> Outcome:
    where = folder.removeprefix(_NO_DEVICE).removeprefix("_") if folder.startswith(_NO_DEVICE) else folder
    said = dict(line.partition("\t")[::2] for line in record.splitlines())
    status, reason, runtime = said.get("status", ""), said.get("reason", ""), said.get("runtime", "")
    measured = {key: value for key, value in said.items() if key not in _KNOWN}
    if status == "pass":
        return Outcome(test=test, where=where, status=Status.PASS, runtime=runtime, measured=measured)
    if status == "not run":
        why = "; ".join(skip.reason for skip in skips) or reason or "it does not say why"
        return Outcome(test=test, where=where, status=Status.SKIP, reason=why)
    if status == "fail":
        why = _REASONS.get(reason, reason)
        if reason == "exit":
            why += f" {said.get('exit_status', '?')}"
        lacks = ", ".join(dict.fromkeys(_LACKS.findall(printed)))
        shown = (*_some(details), *([f"(the guest has not all that ./check asks for: {lacks})"] if lacks else []))
        return Outcome(test=test, where=where, status=Status.FAIL, reason=why, runtime=runtime, details=shown, measured=measured)
    why = f"expected a status of pass, fail or not run, got {status!r}"
    return Outcome(test=test, where=where, status=Status.ERROR, reason=why, details=_some(record))


def _indented(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("    "):
            return
        yield line


def _some(text: str) -> tuple[str, ...]:
    lines = tuple(line.rstrip() for line in text.splitlines() if line.strip())
    return lines if len(lines) <= _MOST_LINES else (*lines[:_MOST_LINES], f"... {len(lines) - _MOST_LINES} lines more")
