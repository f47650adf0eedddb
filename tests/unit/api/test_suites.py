"""Suites of blktests: which tests are run, copied and listed, and guests that break."""

import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.api import suites
from testbed.api.blktests import Status, TestResult
from testbed.errors import CommandFailed, GuestError, GuestLost, HostError, UsageError, WireBroken
from testbed.topology import Topology
from tests.support.blktests_records import left, one, record


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
    # A test's name becomes the name of a folder, an argument of a shell command and a line of a table.
    odd = checkout / "tests" / "a'\x1b[2J\n"
    odd.mkdir()
    (odd / "001").touch()
    with pytest.raises(UsageError, match="expected groups of tests with names of letters"):
        suites.find_tests(checkout, [])
    (odd / "001").unlink()
    # A huge sparse file is not copied, nor are more files than any suite has.
    with (checkout / "hole").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(UsageError, match="expected a suite of at most 200000 files and 4 GiB, got more"):
        suites._copy(checkout, None, tmp_path / "home")
    (checkout / "hole").unlink()
    monkeypatch.setattr(suites, "_MOST_CHECKOUT_FILES", 3)
    with pytest.raises(UsageError, match="expected a suite of at most 3 files"):
        suites._copy(checkout, None, tmp_path / "home")
    # Empty folders count as well.
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
    # The tests of ./check itself fail on purpose: without names they are not selected, as with ./check.
    assert suites.find_tests(tmp_path, []).tests == ("loop/001", "loop/002", "nvme/001")
    assert suites.find_tests(tmp_path, ["meta"]).tests == ("meta/001",)
    with pytest.raises(
        UsageError, match=r"one of its groups \(loop, meta, nvme\) or tests such as loop/001, got '../../etc/passwd'"
    ):
        suites.find_tests(tmp_path, ["../../etc/passwd"])
    with pytest.raises(UsageError, match=r"expected a checkout with ./check and tests/"):
        suites.find_tests(tmp_path / "tests", [])


class Guest:
    """A guest whose file system hangs after its first test."""

    def __init__(self) -> None:
        self.disks: dict[str, SimpleNamespace] = {}
        self.stands_still = False

    async def put(self, source: Path, target: str) -> None:
        pass

    async def run(self, *command: str, check: bool = True, timeout_s: float | None = None) -> SimpleNamespace:
        if self.stands_still and command[0] == "bash":
            raise CommandFailed("g0", "bash", "none within 60 s", "")
        self.stands_still = "loop/001" in command
        listed = (
            "PPID STAT WCHAN COMMAND\n2 I - [kworker]\n1 S do_wait bash -c cd there\n"
            "test=$1\nrm -rf results\n1 D loop_flush sync\n"
        )
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
    results: dict[str, tuple[TestResult, ...]] = {}
    # Files in a checkout that cannot be copied are no part of it.
    os.mkfifo(tmp_path / "tests/loop/003")
    (tmp_path / "tests/loop/004").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    suite = suites.find_tests(tmp_path, [])
    assert suite.tests == ("loop/001", "loop/002")
    scratch = tmp_path.with_name("scratch")
    await suites.run_suite(Testbed(scratch), suite, how, tmp_path / "evidence", results.__setitem__)  # type: ignore[arg-type]  # a fake
    assert sorted(path.name for path in (scratch / "checkout/tests/loop").iterdir()) == ["001", "002", "004"]
    with pytest.raises(HostError, match=rf"^{scratch}/checkout: cannot be copied: File exists$"):
        await suites.run_suite(Testbed(scratch), suite, how, tmp_path / "evidence", results.__setitem__)  # type: ignore[arg-type]  # a fake
    done = [each for test in suite.tests for each in results[test]]
    assert [each.status for each in done] == [Status.HANG, Status.ERROR]
    assert done[0].details == ("PPID STAT WCHAN COMMAND", "1 S do_wait bash -c cd there", "1 D loop_flush sync")


class Broken(Testbed):
    """A testbed whose guests raise the error that `breaks` has for their test, before or after it has ended."""

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
    results: dict[str, tuple[TestResult, ...]] = {}
    testbed = Broken(tmp_path / "scratch", breaks)
    await suites.run_suite(testbed, suite, how, tmp_path / "evidence", results.__setitem__)  # type: ignore[arg-type]  # a fake
    done = [each for test in suite.tests for each in results[test]]
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
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert one(output).details[-2:] == ("-expected", "+got")
    assert sorted(file.name for file in (tmp_path / "left/results/nodev/loop").iterdir()) == ["001", "001.out.bad"]
