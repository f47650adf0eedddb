"""What one test in the format of blktests says of itself. Pure.

`./check GROUP/NNN` leaves results/FOLDER/GROUP/NNN for each device and condition that it ran the test for, a line for each key with a tab
before its value (`status`, `reason`, `exit_status`, `runtime`, and what the test has measured). Why it did not run one is only printed,
indented, below a line that ends with `[not run]`; a whole group that does not run leaves nothing but that.
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
# `runtime ... 1.2s`: what is printed in columns between that line and the reasons.
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
# Of what a test printed, or of how its output differs; and of a line, a reason, or what it measured.
_MOST_LINES, _MOST_CHARACTERS, _LONGEST_WHERE = 20, 1000, 250
# Of one test, each for one of its devices and conditions; and of what each has measured.
_MOST_OUTCOMES, _MOST_MEASURED = 500, 100
# Of all texts of one test: each of its records may be as long as they may, and results.json has all tests.
_MOST_KEPT_CHARACTERS, _LEAST_CHARACTERS = 1 << 16, 100


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


def results_folder(test: str) -> str:
    """What the folder of a test's guest is called."""
    return test.replace("/", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
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


def read_results(
    test: str, left: str, printed: str, source: str, *, devices: bool, cut: bool = False
) -> tuple[TestResult, ...]:
    """What `./check TEST` came to.

    `left`: a folder, the record in it, and how the output differs or what the kernel said, each with a NUL behind it, as often as there are
    records. `printed`: its output and errors. `source`: the test itself. `devices`: whether there are any that it may overwrite. `cut`: the
    guest said more than is read of it: what is missing may be a failure, and so nothing passes without an error beside it.
    """
    skips = list(islice(_skips(printed), _MOST_OUTCOMES + 1))
    found: list[TestResult] = []
    told: set[_Skip] = set()
    # Once for all records: a guest may leave many of them, and print much.
    shown, lacks = _some(printed), _lacks(printed)
    parts = left.split("\0", 3 * _MOST_OUTCOMES + 1)
    for folder, record, difference in zip(parts[:-1:3], parts[1:-1:3], parts[2:-1:3], strict=False):
        mine = [skip for skip in skips if (folder or _NO_DEVICE) in skip.folders]
        told.update(mine)
        found.append(_of_record(test, folder, record, mine, _some(difference) if difference else shown, lacks))
    # In the order of printing, each once: a device may be refused twice.
    rest = dict.fromkeys((skip.where, skip.reason) for skip in skips if skip not in told)
    found += [TestResult(test=test, where=where, status=Status.SKIP, reason=reason) for where, reason in rest]
    if cut or len(parts) % 3 != 1 or len(found) > _MOST_OUTCOMES:
        why = f"expected at most {_MOST_OUTCOMES} whole records and skips of it, and 1 MiB; got more, and what the others say is not known"
        return (*_kept(found[:_MOST_OUTCOMES]), TestResult(test=test, status=Status.ERROR, reason=why))
    if found:
        return _kept(found)
    if not devices and _FOR_DEVICES.search(source):
        return (
            TestResult(
                test=test, status=Status.SKIP, reason="it is for devices that it may overwrite; --test-disk names them"
            ),
        )
    return (TestResult(test=test, status=Status.ERROR, reason="./check left no result of it", details=shown),)


def _kept(found: list[TestResult]) -> tuple[TestResult, ...]:
    """These, and their texts as far as there is room for those of one test."""
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


def _lacks(printed: str) -> str:
    """The programs that ./check asks for and does not find."""
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


def _of_record(
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
    return TestResult(test=test, where=where, status=Status.ERROR, reason=why, details=_some(record))


def _some(text: str) -> tuple[str, ...]:
    """The first lines of a text."""
    lines = [line for line in text.splitlines() if line.strip()]
    shown = tuple(_short(line.rstrip()) for line in lines[:_MOST_LINES])
    return shown if len(lines) <= _MOST_LINES else (*shown, f"... {len(lines) - _MOST_LINES} lines more")


def _short(text: str, most: int = _MOST_CHARACTERS) -> str:
    """What a guest says, up to a length that a person reads."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
