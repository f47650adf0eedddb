"""What a test in the format of blktests says of itself."""

import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.api import blktests, suites
from testbed.api.blktests import Status, TestResult, read_results
from testbed.errors import CommandFailed, GuestError, GuestLost, HostError, UsageError, WireBroken
from testbed.topology import Topology

SOURCE = "test() {\n    true\n}\n"
FOR_DEVICES = "device_requires() {\n    true\n}\n\ntest_device() {\n    true\n}\n"
# As it is printed of a test for two devices and two conditions each, of which it runs on one.
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


def record(**words: str) -> str:
    return "".join(f"{key}\t{value}\n" for key, value in words.items())


def left(*parts: str) -> str:
    return "".join(f"{part}\0" for part in parts)


def one(text: str, printed: str = "", source: str = SOURCE, *, devices: bool = False) -> TestResult:
    (found,) = read_results("loop/001", text, printed, source, devices=devices)
    return found


def test_a_record_says_how_it_ended_how_long_it_took_and_what_it_measured() -> None:
    text = (
        record(status="pass", runtime="1.2s", exit_status="0", date="2026-01-01", description="a loop")
        + "read iops\t800\n"
    )
    found = one(left("nodev", text, ""))
    assert (found.status, found.runtime, found.reason, found.where) == (Status.PASS, "1.2s", "", "")
    assert found.measured == {"read iops": "800"} and found.name == "loop/001"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("output", "its output differs from what is expected"),
        ("dmesg", "something in the kernel's log"),
        ("exit", "it exited with status 3"),
    ],
)
def test_a_failure_says_why_and_shows_how(reason: str, said: str) -> None:
    found = one(left("nodev", record(status="fail", reason=reason, exit_status="3"), "-expected\n+got\n"), "printed")
    assert (found.status, found.reason, found.details) == (Status.FAIL, said, ("-expected", "+got"))


def test_a_failure_says_what_the_guest_lacks_of_what_check_asks_for() -> None:
    text = left("nodev", record(status="fail", reason="output"), "-expected\n")
    found = one(text, "./check: gawk is not available. Install GNU awk.\n")
    assert found.details[-1] == "(the guest has not all that ./check asks for: gawk)"


def test_each_device_and_condition_is_an_outcome_and_each_skip_has_its_own_reasons() -> None:
    no = record(status="not run", description="reads (and writes) a device")
    text = left("sda_bs_4_k", no, "", "sda_bs_512", record(status="pass", runtime="1.2s"), "", "sdb_bs_512", no, "")
    found = {each.where: each for each in read_results("block/009", text, PRINTED, FOR_DEVICES, devices=True)}
    assert {where: each.status for where, each in found.items()} == {
        "sda_bs_512": Status.PASS,
        "sda_bs_4_k": Status.SKIP,
        "sdb_bs_512": Status.SKIP,
    }
    assert found["sda_bs_4_k"].reason == "sda has no blocks of 4 k; kernel is too old"
    assert found["sdb_bs_512"].reason == "sdb is read-only ... or gone"
    assert found["sdb_bs_512"].name == "block/009 (sdb_bs_512)"


def test_a_group_that_does_not_run_leaves_no_record_and_is_skipped_for_its_reasons_alone() -> None:
    printed = (
        "loop/***                                           [not run]\n    no fio\n    no root\nloop/002 [passed]\n"
    )
    assert (one("", printed).status, one("", printed).reason) == (Status.SKIP, "no fio; no root")


def test_a_device_that_a_group_refuses_is_skipped_once_beside_one_that_it_takes() -> None:
    refused = "block/*** => sdb                                 [not run]\n    sdb is no disk\n"
    found = read_results("block/009", left("sda", record(status="pass"), ""), refused * 2, FOR_DEVICES, devices=True)
    assert [(each.where, each.status, each.reason) for each in found] == [
        ("sda", Status.PASS, ""),
        ("sdb", Status.SKIP, "sdb is no disk"),
    ]


def test_one_for_several_devices_that_has_none_lies_above_all_folders() -> None:
    printed = (
        "md/001 (makes an array)                        [not run]\n    TEST_CASE_DEV_ARRAY is not defined for md/001\n"
    )
    found = one(left("", record(status="not run"), ""), printed, "test_device_array() {\n")
    assert (found.status, found.where, found.reason) == (
        Status.SKIP,
        "",
        "TEST_CASE_DEV_ARRAY is not defined for md/001",
    )


def test_one_for_devices_says_nothing_where_there_are_none() -> None:
    assert one("", "", FOR_DEVICES).status is Status.SKIP and "--test-disk" in one("", "", FOR_DEVICES).reason
    assert one("", "./check: /dev/sda does not exist\n", FOR_DEVICES, devices=True).status is Status.ERROR


def test_a_suite_that_says_nothing_is_no_pass() -> None:
    found = one("", "./check: line 3: gawk: command not found\n")
    assert found.status is Status.ERROR and "gawk" in found.details[0]
    assert one(left("nodev", record(status="maybe"), "")).status is Status.ERROR


def test_a_record_that_says_two_things_is_no_pass() -> None:
    found = one(left("nodev", "status\tfail\nreason\toutput\nstatus\tpass\n", ""))
    assert (found.status, found.reason) == (
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
    found = read_results("loop/001", text.get(cut, passed), printed, SOURCE, devices=True, cut=cut == "its output")
    assert found[-1].status is Status.ERROR and "what the others say is not known" in found[-1].reason
    assert len(found) <= 501 and all(each.status is not Status.ERROR for each in found[:-1])


def test_whatever_a_guest_says_of_a_test_stays_short() -> None:
    long = "x" * (1 << 20)
    text = left(
        long,
        f"status\tfail\nreason\t{long}\nruntime\t{long}\n" + "".join(f"{long}{n}\t{long}\n" for n in range(9)),
        f"{long}\n" * 30,
    )
    printed = f"./check: {long} is not available.\n" * 3 + f"a/1 => {long} [not run]\n    {long}\n"
    found = read_results("loop/001", text, printed, SOURCE, devices=True)
    assert [each.status for each in found] == [Status.FAIL]
    assert (
        sum(
            len(part)
            for each in found
            for part in (each.where, each.reason, each.runtime, *each.details, *each.measured)
        )
        < 40_000
    )
    many = one(left("nodev", "status\tpass\n" + "".join(f"m{n}\t1\n" for n in range(100_000)), ""))
    assert many.status is Status.PASS and len(many.measured) < 101
    (skip,) = read_results("loop/001", "", "a/1 [not run]\n" + f"    {long[:5000]}\n" * 1000, SOURCE, devices=True)
    assert skip.status is Status.SKIP and len(skip.reason) < 1100


def test_what_a_test_printed_is_looked_at_once_however_many_records_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are a guest's choice: 500 records beside 1 MiB of empty lines took minutes, in which nothing else was done."""
    looked: list[str] = []

    class Counting:
        def match(self, line: str) -> None:
            looked.append(line)

    monkeypatch.setattr(blktests, "_LACKS", Counting())
    found = read_results("loop/001", "\0status\tfail\n\0\0" * 400, "./check: gawk\n" * 1000, SOURCE, devices=True)
    assert len(found) == 400 and len(looked) <= 1000


def test_what_all_records_of_a_test_say_stays_short_together() -> None:
    """Each with 20 lines of 1,000 characters, 500 of them: a few such tests made results that `report` no longer reads."""
    records = "".join(f"{'d' * 900}{number}\0status\tfail\nreason\t{'r' * 900}\n\0\0" for number in range(400))
    found = read_results("loop/001", records, ("x" * 999 + "\n") * 1000, SOURCE, devices=True)
    assert [each.status for each in found] == [Status.FAIL] * 400
    assert len(found[0].details) == 21 and found[-1].details == (
        "(what it says is left out: others of this test fill the room)",
    )
    assert len(str(found)) < 400_000


async def test_of_a_list_of_processes_without_end_the_begin_is_read() -> None:
    class Flooding:
        async def run(self, *words: str, **how: object) -> SimpleNamespace:
            return SimpleNamespace(stdout="\n" * (8 << 20) + "    1 S    do_wait sh\n")

    assert await suites._list_processes(Flooding()) == ()  # type: ignore[arg-type]  # as much of a guest as it needs


def test_a_suite_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    deep = checkout.joinpath(*["a"] * 70)
    deep.mkdir(parents=True)
    with pytest.raises(UsageError, match="expected a suite of at most 64 levels of folders, got more"):
        suites._copy(checkout, None, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_suite_that_a_stranger_made_is_bounded_and_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "tests/loop").mkdir(parents=True)
    (checkout / "check").touch()
    secret = tmp_path / "secret"
    secret.write_text("test_device() {\n")
    (checkout / "tests/loop/001").symlink_to(secret)
    (checkout / "tests/loop/002").symlink_to("001.sh")
    (checkout / "tests/loop/001.sh").write_text("test_device_array() {\n")
    (checkout / "tests/elsewhere").symlink_to(tmp_path)
    assert suites.find_tests(checkout, []).tests == ("loop/001", "loop/002")
    assert suites._read_source(checkout, "loop/001") == "" and "test_device_array" in suites._read_source(
        checkout, "loop/002"
    )
    # A test's name is a folder's, a word of a shell and a line of a table.
    odd = checkout / "tests" / "a'\x1b[2J\n"
    odd.mkdir()
    (odd / "001").touch()
    with pytest.raises(UsageError, match="expected groups of tests with names of letters"):
        suites.find_tests(checkout, [])
    (odd / "001").unlink()
    # A file that is one hole is not copied, nor are more files than any suite has.
    with (checkout / "hole").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(UsageError, match="expected a suite of at most 200000 files and 4 GiB, got more"):
        suites._copy(checkout, None, tmp_path / "home")
    (checkout / "hole").unlink()
    monkeypatch.setattr(suites, "_MOST_CHECKOUT_FILES", 3)
    with pytest.raises(UsageError, match="expected a suite of at most 3 files"):
        suites._copy(checkout, None, tmp_path / "home")
    # Empty folders take room as well.
    (tmp_path / "folders").mkdir()
    for number in range(4):
        (tmp_path / "folders" / str(number)).mkdir()
    with pytest.raises(UsageError, match="expected a suite of at most 3 files"):
        suites._copy(tmp_path / "folders", None, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_groups_and_tests_are_found_and_others_refused(tmp_path: Path) -> None:
    (tmp_path / "check").touch()
    for name in ("loop/001", "loop/002", "loop/002.out", "loop/rc", "nvme/001", "meta/001"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).touch()
    assert suites.find_tests(tmp_path, ["loop"]).tests == ("loop/001", "loop/002")
    assert suites.find_tests(tmp_path, ["nvme/001", "loop"]).tests == ("nvme/001", "loop/001", "loop/002")
    # The tests of ./check itself fail on purpose: all of it is without them, as with ./check.
    assert suites.find_tests(tmp_path, []).tests == ("loop/001", "loop/002", "nvme/001")
    assert suites.find_tests(tmp_path, ["meta"]).tests == ("meta/001",)
    with pytest.raises(
        UsageError, match=r"one of its groups \(loop, meta, nvme\) or tests such as loop/001, got '../../etc/passwd'"
    ):
        suites.find_tests(tmp_path, ["../../etc/passwd"])
    with pytest.raises(UsageError, match=r"expected a checkout with ./check and tests/"):
        suites.find_tests(tmp_path / "tests", [])


class Guest:
    """A guest whose file system stands still after the first of its tests."""

    def __init__(self) -> None:
        self.disks: dict[str, SimpleNamespace] = {}
        self.stands_still = False

    async def put(self, source: Path, target: str) -> None:
        pass

    async def run(self, *command: str, check: bool = True, timeout_s: float | None = None) -> SimpleNamespace:
        if self.stands_still and command[0] == "bash":
            raise CommandFailed("g0", "bash", "none within 60 s", "")
        self.stands_still = "loop/001" in command
        listed = "PPID STAT WCHAN COMMAND\n2 I - [kworker]\n1 S do_wait bash -c cd there\ntest=$1\nrm -rf results\n1 D loop_flush sync\n"
        listed += '1 S do_select dropbear -s -E\n9 S do_wait sh -c echo 0; eval "$SSH_ORIGINAL_COMMAND"\n'
        return SimpleNamespace(stdout=listed, stderr="", truncated=False)


class Testbed:
    __test__ = False
    host = SimpleNamespace(cores=1, memory_free_bytes=16 << 30)

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def new_folder(self) -> Path:
        return self._scratch

    async def kernel(self, spec: str) -> SimpleNamespace:
        return SimpleNamespace(config=None)

    @contextlib.asynccontextmanager
    async def vm(self, topology: Topology, *, kernel: str, evidence: Path) -> AsyncIterator[Guest]:
        yield Guest()


async def test_a_guest_that_stands_still_after_its_test_is_a_hang_and_the_next_test_is_run(tmp_path: Path) -> None:
    for name in ("check", "tests/loop/001", "tests/loop/002"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    topology = Topology.model_validate({"version": 1, "guests": {"g0": {}}})
    how = suites.SuiteOptions(topology=topology, kernel="k", disks=(), timeout_s=9, quick_s=None)
    told: dict[str, tuple[TestResult, ...]] = {}
    # What lies in a checkout and cannot be copied is no part of it.
    os.mkfifo(tmp_path / "tests/loop/003")
    (tmp_path / "tests/loop/004").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    suite = suites.find_tests(tmp_path, [])
    assert suite.tests == ("loop/001", "loop/002")
    scratch = tmp_path.with_name("scratch")
    await suites.run_suite(Testbed(scratch), suite, how, tmp_path / "evidence", told.__setitem__)  # type: ignore[arg-type]  # a fake
    assert sorted(path.name for path in (scratch / "checkout/tests/loop").iterdir()) == ["001", "002", "004"]
    with pytest.raises(HostError, match=rf"^{scratch}/checkout: cannot be copied: File exists$"):
        await suites.run_suite(Testbed(scratch), suite, how, tmp_path / "evidence", told.__setitem__)  # type: ignore[arg-type]  # a fake
    done = [each for test in suite.tests for each in told[test]]
    assert [each.status for each in done] == [Status.HANG, Status.ERROR]
    assert done[0].details == ("PPID STAT WCHAN COMMAND", "1 S do_wait bash -c cd there", "1 D loop_flush sync")


class Broken(Testbed):
    """Its guests break as `breaks` says of the tests that they are for, before or after these have ended."""

    def __init__(self, scratch: Path, breaks: dict[str, tuple[str, Exception]]) -> None:
        super().__init__(scratch)
        self._breaks = breaks

    @contextlib.asynccontextmanager
    async def vm(self, topology: Topology, *, kernel: str, evidence: Path) -> AsyncIterator[Guest]:
        when, error = self._breaks.get(evidence.name, ("never", Exception()))
        if when == "at its start":
            raise error

        class Breaking(Guest):
            async def run(self, *command: str, check: bool = True, timeout_s: float | None = None) -> SimpleNamespace:
                if when == "in its test" and timeout_s is not None:
                    raise error
                printed = left("nodev", record(status="pass"), "") if command[1:3] == ("-c", suites._LEFT) else ""
                return SimpleNamespace(stdout=printed, stderr="", truncated=False)

        yield Breaking()
        if when == "at its end":
            raise error


async def test_what_goes_wrong_with_one_test_is_its_own_and_the_next_is_run(tmp_path: Path) -> None:
    breaks = {
        "loop-001": ("in its test", WireBroken("guest g0: `bash`: the SSH connection broke: Connection lost")),
        "loop-002": ("at its start", GuestError("guest g0: copying files: no space left")),
        "loop-003": ("at its start", HostError("/state: cannot be written: No space left on device")),
        "loop-004": ("in its test", ValueError("invalid literal\nfor int()")),
        "loop-005": ("at its end", GuestLost("g0", "running", "panic on its console: oh no", ("the last", "lines"))),
        "loop-006": ("in its test", GuestLost("g0", "running", "panic on its console: oh no", ("the last", "lines"))),
    }
    for name in ("check", *(f"tests/loop/00{number}" for number in range(1, 8))):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).touch()
    suite = suites.find_tests(tmp_path / "checkout", [])
    topology = Topology.model_validate({"version": 1, "guests": {"g0": {}}})
    how = suites.SuiteOptions(topology=topology, kernel="k", disks=(), timeout_s=9, quick_s=None)
    told: dict[str, tuple[TestResult, ...]] = {}
    testbed = Broken(tmp_path / "scratch", breaks)
    await suites.run_suite(testbed, suite, how, tmp_path / "evidence", told.__setitem__)  # type: ignore[arg-type]  # a fake
    done = [each for test in suite.tests for each in told[test]]
    assert [(each.test, each.status.value) for each in done] == [
        ("loop/001", "lost"),
        ("loop/002", "lost"),
        ("loop/003", "error"),
        ("loop/004", "error"),
        ("loop/005", "pass"),
        ("loop/006", "lost"),
        ("loop/007", "pass"),
    ]
    assert "the SSH connection broke" in done[0].reason and "No space left on device" in done[2].reason
    assert done[3].reason.startswith("a mistake of the testbed: ValueError: ") and "Traceback" in done[3].details[0]
    assert done[5].details == ("the last", "lines")


def test_what_a_failed_test_leaves_is_copied_without_pipes_and_links(tmp_path: Path) -> None:
    folder = tmp_path / "checkout/results/nodev/loop"
    folder.mkdir(parents=True)
    expected = tmp_path / "checkout/tests/loop/001.out"
    expected.parent.mkdir(parents=True)
    expected.write_text("expected\n")
    (folder / "001").write_text(record(status="fail", reason="output"))
    (folder / "001.out.bad").write_text("got\n")
    (folder / "001.link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "001.pipe")
    command = ["bash", "-c", suites._LEFT, str(tmp_path / "checkout"), "loop/001"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert one(said).details[-2:] == ("-expected", "+got")
    assert sorted(file.name for file in (tmp_path / "left/results/nodev/loop").iterdir()) == ["001", "001.out.bad"]
