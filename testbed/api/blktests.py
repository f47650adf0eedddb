"""Parses the results of one test in the format of blktests. Pure.

`./check GROUP/NNN` writes a record results/FOLDER/GROUP/NNN for each device and condition that it ran the test for,
with a line for each key and a tab before its value (`status`, `reason`, `exit_status`, `runtime`, and measurements
of the test). The reason why a test was not run is only printed, indented, below a line that ends with `[not run]`;
for a whole group that is not run there is nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile

from testbed.regex import LONGEST_LINE, compile_linear

_NOT_RUN = compile_linear(
    r"^(?:\S+/\S+)(?: => (?P<devices>[^([]*[^([\s]))?\s+(?:\((?P<condition>[^)]*)\).*)?\[not run\]\s*$"
)
# Columns such as `runtime ... 1.2s`, which are printed between that line and the reasons.
_MEASURED = compile_linear(r"^    \S.*\s{2}\.\.\.(\s{2}|\s*$)")
_LACKS = compile_linear(r"^\S*check: (\S+) is not available\.")
_FOR_DEVICES = compile_linear(r"(?m)^[ \t]*(?:function[ \t]+)?test_device(?:_array)?[ \t]*\(\)")
_REASONS = {
    "output": "its output differs from what is expected",
    "dmesg": "something in the kernel's log",
    "exit": "it exited with status",
}
_KNOWN = frozenset({"status", "reason", "exit_status", "runtime", "date", "description"})
_NO_DEVICE = "nodev"
# Limits: lines of a test's output or difference; characters of a line, a reason or a measurement; characters of
# `where`.
_MOST_LINES, _MOST_CHARACTERS, _LONGEST_WHERE = 20, 1000, 250
# Limits: results of one test, each for a device and a condition; measurements of each result.
_MOST_OUTCOMES, _MOST_MEASURED = 500, 100
# Limits: characters of all texts of one test, since results.json holds all tests; of a reason that is cut for that.
_MOST_KEPT_CHARACTERS, _LEAST_CHARACTERS = 1 << 16, 100


class Status(enum.Enum):
    """How a test ended. HANG, LOST: the guest hung or was lost. ERROR: there is no result, because of the suite,
    this machine or the testbed."""

    PASS = "pass"  # noqa: S105 - a word, no password
    FAIL = "fail"
    SKIP = "skip"
    HANG = "hang"
    LOST = "lost"
    ERROR = "error"


# The result of a suite that has a test of this status, gravest first; `skipped` only if all tests were.
RESULTS = {
    Status.FAIL: "failed",
    Status.HANG: "failed",
    Status.LOST: "failed",
    Status.ERROR: "no result",
    Status.PASS: "passed",
    Status.SKIP: "skipped",
}


def results_folder(test: str) -> str:
    """Return the name of the folder of a test's guest."""
    return test.replace("/", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """The result of one test, for one of its devices or conditions (`where`), if it has any. `details`: lines to
    show of a test that did not pass. `measured`: its measurements, such as `read iops`.
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
        """The name of the test, with its device or condition."""
        return f"{self.test} ({self.where})" if self.where else self.test


@dataclass(frozen=True, slots=True, kw_only=True)
class _Skip:
    """A test that was not run. `folders`: possible folders of its record."""

    where: str
    folders: frozenset[str]
    reason: str


def read_results(
    test: str, left: str, printed: str, source: str, *, devices: bool, cut: bool = False
) -> tuple[TestResult, ...]:
    """Return the results of `./check TEST`.

    `left`: for each record its folder, the record, and the difference of the output or the kernel log, each
    terminated by a NUL. `printed`: standard output and error. `source`: the source of the test. `devices`: whether
    there are any that it may overwrite. `cut`: a part of the guest's output is missing, which may have a failure, so
    that an ERROR is added.
    """
    skips = list(islice(_skips(printed), _MOST_OUTCOMES + 1))
    found: list[TestResult] = []
    used: set[_Skip] = set()
    # Computed once for all records: a guest may write many of them, and print much.
    shown, lacks = _first_lines(printed), _missing_programs(printed)
    parts = left.split("\0", 3 * _MOST_OUTCOMES + 1)
    for folder, record, difference in zip(parts[:-1:3], parts[1:-1:3], parts[2:-1:3], strict=False):
        mine = [skip for skip in skips if (folder or _NO_DEVICE) in skip.folders]
        used.update(mine)
        found.append(
            _parse_record(test, folder, record, mine, _first_lines(difference) if difference else shown, lacks)
        )
    # In the printed order, each once: a device may be refused twice.
    rest = dict.fromkeys((skip.where, skip.reason) for skip in skips if skip not in used)
    found += [TestResult(test=test, where=where, status=Status.SKIP, reason=reason) for where, reason in rest]
    if cut or len(parts) % 3 != 1 or len(found) > _MOST_OUTCOMES:
        why = (
            f"expected at most {_MOST_OUTCOMES} whole records and skips of it, and 1 MiB; got more,"
            " and what the others say is not known"
        )
        return (*_within_limit(found[:_MOST_OUTCOMES]), TestResult(test=test, status=Status.ERROR, reason=why))
    if found:
        return _within_limit(found)
    if not devices and _FOR_DEVICES.search(source):
        return (
            TestResult(
                test=test, status=Status.SKIP, reason="it is for devices that it may overwrite; --test-disk names them"
            ),
        )
    return (TestResult(test=test, status=Status.ERROR, reason="./check left no result of it", details=shown),)


def _within_limit(found: list[TestResult]) -> tuple[TestResult, ...]:
    """Cut the texts of the results of one test to the limit."""
    room, kept = _MOST_KEPT_CHARACTERS, []
    for one in found:
        size = len(one.reason) + sum(map(len, (*one.details, *one.measured, *one.measured.values())))
        if size > room:
            said = (
                ("(what it says is left out: others of this test fill the room)",)
                if one.details or one.measured
                else ()
            )
            one = replace(one, reason=one.reason[:_LEAST_CHARACTERS], details=said, measured={})
        else:
            room -= size
        kept.append(one)
    return tuple(kept)


def _missing_programs(printed: str) -> str:
    """Return the programs that ./check needs and does not find."""
    lines = (line[:LONGEST_LINE] for line in printed.splitlines() if "check: " in line)
    missing = (found[1] for line in lines if (found := _LACKS.match(line)))
    return _short(", ".join(islice(dict.fromkeys(missing), _MOST_LINES)))


def _skips(printed: str) -> Iterator[_Skip]:
    lines = printed.splitlines()
    for number, line in enumerate(lines):
        said = _NOT_RUN.match(line[:LONGEST_LINE]) if "[not run]" in line else None
        if said is None:
            continue
        folder = (said["devices"] or _NO_DEVICE).replace(" ", "_")
        condition = (said["condition"] or "").replace(" ", "_").replace("=", "_")
        below = takewhile(lambda one: one.startswith("    "), (lines[at] for at in range(number + 1, len(lines))))
        reasons = (line.strip() for line in below if not _MEASURED.match(line[:LONGEST_LINE]))
        yield _Skip(
            where=_short(said["devices"] or "", _LONGEST_WHERE),
            folders=frozenset({folder, f"{folder}_{condition}"}),
            reason=_short("; ".join(map(_short, islice(reasons, _MOST_LINES)))) or "it does not say why",
        )


def _parse_record(
    test: str, folder: str, record: str, skips: list[_Skip], details: tuple[str, ...], lacks: str
) -> TestResult:
    where = _short(
        folder.removeprefix(_NO_DEVICE).removeprefix("_") if folder.startswith(_NO_DEVICE) else folder, _LONGEST_WHERE
    )
    pairs = [line.partition("\t")[::2] for line in record.splitlines()]
    said = dict(pairs)
    statuses = list(dict.fromkeys(value for key, value in pairs if key == "status"))
    status, reason, runtime = " and ".join(statuses), _short(said.get("reason", "")), _short(said.get("runtime", ""))
    measured = {_short(key): _short(value) for key, value in islice(said.items(), _MOST_MEASURED) if key not in _KNOWN}
    if status == "pass":
        return TestResult(test=test, where=where, status=Status.PASS, runtime=runtime, measured=measured)
    if status == "not run":
        why = "; ".join(skip.reason for skip in skips[:_MOST_LINES]) or reason or "it does not say why"
        return TestResult(test=test, where=where, status=Status.SKIP, reason=_short(why))
    if status == "fail":
        why = _REASONS.get(reason, reason)
        if reason == "exit":
            why += f" {_short(said.get('exit_status', '?'))}"
        shown = (*details, *([f"(the guest has not all that ./check asks for: {lacks})"] if lacks else []))
        return TestResult(
            test=test, where=where, status=Status.FAIL, reason=why, runtime=runtime, details=shown, measured=measured
        )
    why = f"expected a status of pass, fail or not run, got {_short(status)!r}"
    return TestResult(test=test, where=where, status=Status.ERROR, reason=why, details=_first_lines(record))


def _first_lines(text: str) -> tuple[str, ...]:
    """Return the first lines of a text."""
    lines = [line for line in text.splitlines() if line.strip()]
    shown = tuple(_short(line.rstrip()) for line in lines[:_MOST_LINES])
    return shown if len(lines) <= _MOST_LINES else (*shown, f"... {len(lines) - _MOST_LINES} lines more")


def _short(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Cut a guest's text to a readable length."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
