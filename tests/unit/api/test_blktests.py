"""Results of tests in the format of blktests: parsed, matched with the output, and limited."""

import pytest

from testbed.api import blktests
from testbed.api.blktests import Status, read_results
from tests.support.blktests_records import SOURCE, left, one, record

FOR_DEVICES = "device_requires() {\n    true\n}\n\ntest_device() {\n    true\n}\n"


# As blktests prints it for a test with two devices and two conditions each, which runs on one of them.
PRINTED = """\
./check: gawk is not available. Install GNU awk.
block/009 => sda (bs=512) (reads (and writes) a device)
    runtime  ...
block/009 => sda (bs=512) (reads (and writes) a device)                [passed]
    runtime  ...  1.2s
block/009 => sda (bs=4 k) (reads (and writes) a device)         [not run]
    runtime    ...  0.1s
    sda has no blocks of 4 k
    kernel is too old
block/009 => sdb (bs=512) (reads (and writes) a device)         [not run]
    sdb is read-only ... or gone
1 skips: block/009
"""


def test_a_record_says_how_it_ended_how_long_it_took_and_what_it_measured() -> None:
    text = (
        record(status="pass", runtime="1.2s", exit_status="0", date="2026-01-01", description="a loop")
        + "read iops\t800\n"
    )
    parsed = one(left("nodev", text, ""))
    assert (parsed.status, parsed.runtime, parsed.reason, parsed.where) == (Status.PASS, "1.2s", "", "")
    assert parsed.measured == {"read iops": "800"} and parsed.name == "loop/001"


@pytest.mark.parametrize(
    ("reason", "expected_reason"),
    [
        ("output", "its output differs from what is expected"),
        ("dmesg", "something in the kernel's log"),
        ("exit", "it exited with status 3"),
    ],
)
def test_a_failure_says_why_and_shows_how(reason: str, expected_reason: str) -> None:
    parsed = one(left("nodev", record(status="fail", reason=reason, exit_status="3"), "-expected\n+got\n"), "printed")
    assert (parsed.status, parsed.reason, parsed.details) == (Status.FAIL, expected_reason, ("-expected", "+got"))


def test_a_failure_says_what_the_guest_lacks_of_what_check_asks_for() -> None:
    text = left("nodev", record(status="fail", reason="output"), "-expected\n")
    parsed = one(text, "./check: gawk is not available. Install GNU awk.\n")
    assert parsed.details[-1] == "(the guest has not all that ./check asks for: gawk)"


def test_each_device_and_condition_is_an_outcome_and_each_skip_has_its_own_reasons() -> None:
    no = record(status="not run", description="reads (and writes) a device")
    text = left("sda_bs_4_k", no, "", "sda_bs_512", record(status="pass", runtime="1.2s"), "", "sdb_bs_512", no, "")
    parsed = {each.where: each for each in read_results("block/009", text, PRINTED, FOR_DEVICES, devices=True)}
    assert {where: each.status for where, each in parsed.items()} == {
        "sda_bs_512": Status.PASS,
        "sda_bs_4_k": Status.SKIP,
        "sdb_bs_512": Status.SKIP,
    }
    assert parsed["sda_bs_4_k"].reason == "sda has no blocks of 4 k; kernel is too old"
    assert parsed["sdb_bs_512"].reason == "sdb is read-only ... or gone"
    assert parsed["sdb_bs_512"].name == "block/009 (sdb_bs_512)"


def test_a_group_that_does_not_run_leaves_no_record_and_is_skipped_for_its_reasons_alone() -> None:
    printed = (
        "loop/***                                           [not run]\n    no fio\n    no root\nloop/002 [passed]\n"
    )
    assert (one("", printed).status, one("", printed).reason) == (Status.SKIP, "no fio; no root")


def test_a_device_that_a_group_refuses_is_skipped_once_beside_one_that_it_takes() -> None:
    refused = "block/*** => sdb                                 [not run]\n    sdb is no disk\n"
    parsed = read_results("block/009", left("sda", record(status="pass"), ""), refused * 2, FOR_DEVICES, devices=True)
    assert [(each.where, each.status, each.reason) for each in parsed] == [
        ("sda", Status.PASS, ""),
        ("sdb", Status.SKIP, "sdb is no disk"),
    ]


def test_one_for_several_devices_that_has_none_lies_above_all_folders() -> None:
    printed = (
        "md/001 (makes an array)                        [not run]\n    TEST_CASE_DEV_ARRAY is not defined for md/001\n"
    )
    parsed = one(left("", record(status="not run"), ""), printed, "test_device_array() {\n")
    assert (parsed.status, parsed.where, parsed.reason) == (
        Status.SKIP,
        "",
        "TEST_CASE_DEV_ARRAY is not defined for md/001",
    )


def test_one_for_devices_says_nothing_where_there_are_none() -> None:
    assert one("", "", FOR_DEVICES).status is Status.SKIP and "--test-disk" in one("", "", FOR_DEVICES).reason
    assert one("", "./check: /dev/sda does not exist\n", FOR_DEVICES, devices=True).status is Status.ERROR


def test_a_suite_that_says_nothing_is_no_pass() -> None:
    parsed = one("", "./check: line 3: gawk: command not found\n")
    assert parsed.status is Status.ERROR and "gawk" in parsed.details[0]
    assert one(left("nodev", record(status="maybe"), "")).status is Status.ERROR


def test_a_record_that_says_two_things_is_no_pass() -> None:
    parsed = one(left("nodev", "status\tfail\nreason\toutput\nstatus\tpass\n", ""))
    assert (parsed.status, parsed.reason) == (
        Status.ERROR,
        "expected a status of pass, fail or not run, got 'fail and pass'",
    )


@pytest.mark.parametrize("cut", ["its output", "the last record", "the number of records", "the number of skips"])
def test_what_is_not_read_of_a_test_lets_nothing_pass(cut: str) -> None:
    passed = left("nodev", record(status="pass"), "")
    printed = (
        "block/009 => sda [not run]\n"
        if cut != "the number of skips"
        else "".join(f"a/1 => s{n} [not run]\n" for n in range(600))
    )
    text = {
        "the last record": f"{passed}nodev_2\0status\tfa",
        "the number of records": "".join(f"d{n}\0status\tpass\n\0\0" for n in range(600)),
    }
    parsed = read_results("loop/001", text.get(cut, passed), printed, SOURCE, devices=True, cut=cut == "its output")
    assert parsed[-1].status is Status.ERROR and "what the others say is not known" in parsed[-1].reason
    assert len(parsed) <= 501 and all(each.status is not Status.ERROR for each in parsed[:-1])


def test_whatever_a_guest_says_of_a_test_stays_short() -> None:
    long = "x" * (1 << 20)
    text = left(
        long,
        f"status\tfail\nreason\t{long}\nruntime\t{long}\n" + "".join(f"{long}{n}\t{long}\n" for n in range(9)),
        f"{long}\n" * 30,
    )
    printed = f"./check: {long} is not available.\n" * 3 + f"a/1 => {long} [not run]\n    {long}\n"
    parsed = read_results("loop/001", text, printed, SOURCE, devices=True)
    assert [each.status for each in parsed] == [Status.FAIL]
    assert (
        sum(
            len(part)
            for each in parsed
            for part in (each.where, each.reason, each.runtime, *each.details, *each.measured)
        )
        < 40_000
    )
    many = one(left("nodev", "status\tpass\n" + "".join(f"m{n}\t1\n" for n in range(100_000)), ""))
    assert many.status is Status.PASS and len(many.measured) < 101
    (skip,) = read_results("loop/001", "", "a/1 [not run]\n" + f"    {long[:5000]}\n" * 1000, SOURCE, devices=True)
    assert skip.status is Status.SKIP and len(skip.reason) < 1100


def test_what_a_test_printed_is_looked_at_once_however_many_records_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest chooses both: 500 records and 1 MiB of empty lines blocked the event loop for minutes."""
    looked: list[str] = []

    class Counting:
        def match(self, line: str) -> None:
            looked.append(line)

    monkeypatch.setattr(blktests, "_LACKS", Counting())
    parsed = read_results("loop/001", "\0status\tfail\n\0\0" * 400, "./check: gawk\n" * 1000, SOURCE, devices=True)
    assert len(parsed) == 400 and len(looked) <= 1000


def test_what_all_records_of_a_test_say_stays_short_together() -> None:
    """A few tests with 500 records of 20 lines of 1,000 characters made results too large for `report` to read."""
    records = "".join(f"{'d' * 900}{number}\0status\tfail\nreason\t{'r' * 900}\n\0\0" for number in range(400))
    parsed = read_results("loop/001", records, ("x" * 999 + "\n") * 1000, SOURCE, devices=True)
    assert [each.status for each in parsed] == [Status.FAIL] * 400
    assert len(parsed[0].details) == 21 and parsed[-1].details == (
        "(what it says is left out: others of this test fill the room)",
    )
    assert len(str(parsed)) < 400_000
