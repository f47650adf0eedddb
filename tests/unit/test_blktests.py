"""What a test in the format of blktests says of itself."""

from pathlib import Path

import pytest

from testbed import suites
from testbed.blktests import Status, outcome
from testbed.errors import UsageError

PRINTED = """\
loop/003 (a loop on nothing)               [not run]
    no_such_program is not installed
    kernel is too old
loop/004 [passed]
"""


def record(**words: str) -> str:
    return "".join(f"{key}\t{value}\n" for key, value in words.items())


def test_a_record_says_how_it_ended_and_how_long_it_took() -> None:
    one = outcome("loop/001", [record(status="pass", runtime="1.2s", exit_status="0")], "")
    assert (one.status, one.runtime, one.reason) == (Status.PASS, "1.2s", "")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("output", "its output differs from what is expected"),
        ("dmesg", "something in the kernel's log"),
        ("exit", "it exited with status 3"),
    ],
)
def test_a_failure_says_why_and_shows_how(reason: str, said: str) -> None:
    one = outcome("loop/001", [record(status="fail", reason=reason, exit_status="3")], "printed", "-expected\n+got\n")
    assert (one.status, one.reason, one.details) == (Status.FAIL, said, ("-expected", "+got"))


def test_one_that_did_not_run_is_skipped_for_its_reasons_alone() -> None:
    assert outcome("loop/003", [""], PRINTED).reason == "no_such_program is not installed; kernel is too old"
    assert outcome("loop/003", [record(status="not run", reason="no fio")], "").status is Status.SKIP


def test_the_gravest_device_counts() -> None:
    records = [record(status="pass"), record(status="fail", reason="dmesg")]
    assert outcome("block/001", records, "").status is Status.FAIL


def test_a_suite_that_says_nothing_is_no_pass() -> None:
    one = outcome("loop/001", [], "./check: line 3: gawk: command not found\n")
    assert one.status is Status.ERROR and "gawk" in one.details[0]
    assert outcome("loop/001", [record(status="maybe")], "").status is Status.ERROR


def test_groups_and_tests_are_found_and_others_refused(tmp_path: Path) -> None:
    (tmp_path / "check").touch()
    for name in ("loop/001", "loop/002", "loop/002.out", "loop/rc", "nvme/001"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).touch()
    assert suites.found(tmp_path, ["loop"]).tests == ("loop/001", "loop/002")
    assert suites.found(tmp_path, ["nvme/001", "loop"]).tests == ("nvme/001", "loop/001", "loop/002")
    assert len(suites.found(tmp_path, []).tests) == 3
    with pytest.raises(UsageError, match=r"expected one of its groups \(loop, nvme\) or tests such as loop/001, got '../../etc/passwd'"):
        suites.found(tmp_path, ["../../etc/passwd"])
    with pytest.raises(UsageError, match=r"expected a checkout with ./check and tests/"):
        suites.found(tmp_path / "tests", [])
