"""Runs a suite of shell tests in the format of blktests, from a checkout on this machine: each test in its own
guest."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import stat
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.api import Testbed, Vm, blktests
from testbed.api.blktests import Status, TestResult
from testbed.errors import CommandFailed, GuestError, GuestLost, HostError, TestbedError, UsageError, first_error
from testbed.guest.channels.ssh import Result
from testbed.host import admission, eventlog
from testbed.host.admission import Cores
from testbed.regex import LONGEST_LINE, compile_linear
from testbed.topology import Topology

_TEST = compile_linear(r"[0-9]{3}")
_GROUP = compile_linear(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
# The heading of a process list, or one of its lines.
_PROCESS = compile_linear(r"\s*(PPID|\d+)\s+[A-Z]\S*\s+\S+\s+\S")
# Processes of the testbed in every guest: the agent, the SSH server, and the shell by which that runs commands.
_OURS = compile_linear(r"/testbed-agent|\bdropbear -|SSH_ORIGINAL_COMMAND")
_HOME = "/root/suite"
_THERE = f"{_HOME}/checkout"
# Limits: of a test's output and records; of its files that are copied out of its guest; of a test's source.
_MOST_BYTES = 1 << 20
_MOST_RECORDS_BYTES = 256 << 20
_MOST_SOURCE_BYTES = 1 << 20
# Limits of a checkout; blktests with its compiled programs has 10 MiB and 1,500 files.
_MOST_CHECKOUT_BYTES, _MOST_CHECKOUT_FILES, _MOST_CHECKOUT_LEVELS = 4 << 30, 200_000, 64
_LEFT_OUT = frozenset({".git", "results"})
# Limits of a guest's process list that is read, and of the processes that are shown.
_MOST_LISTED_CHARACTERS, _MOST_PROCESSES = 1 << 17, 40
# Groups that run only on request: the tests of ./check itself fail on purpose.
_ON_REQUEST = frozenset({"meta"})
# What the init of a distribution sets up but ours does not, and programs that the image has only as busybox. Without
# /dev/fd bash has no <(...), and ./check finds no test; without a udev daemon some tests fail by the output of udevadm.
_PREPARE = """\
cd "$0"/.. || exit
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do
    [ -e "/dev/${stream#*:}" ] || ln -s "/proc/self/fd/${stream%:*}" "/dev/${stream#*:}"
done
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
modprobe -q configfs
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
for program in bc hexdump; do
    command -v "$program" >/dev/null || ln -s "$(command -v busybox)" "/usr/local/bin/$program"
done
[ -e /run/udev/control ] || [ ! -x /lib/systemd/systemd-udevd ] || /lib/systemd/systemd-udevd --daemon
[ ! -f config ] || cp config "/boot/config-$(uname -r)"
true
"""
# $1: the test. $2: the duration in seconds of tests that have one, or empty. $3...: the devices that the test may
# overwrite. Replaces the config of the checkout, which may name other devices.
_RUN = """\
cd "$0" || exit
test=$1 quick=$2; shift 2
{
    printf 'TEST_DEVS=('; printf '%s ' "$@"; echo ')'
    if [ $# -gt 0 ] && grep -q '^test_device_array' "tests/$test"; then
        echo "declare -A TEST_CASE_DEV_ARRAY; TEST_CASE_DEV_ARRAY['$test']='$*'"
    fi
    [ -z "$quick" ] || echo "TIMEOUT=$quick"
} >config
rm -rf results
# In its own session, so that the processes of a test that hangs can still be listed after the timeout.
setsid ./check "$test" </dev/null &
wait $!
"""
# Prints for each record: its folder, the record, and the difference of the output or the kernel log. A record may be
# above all folders. Its files are copied, away from other things in that folder: pipes, and filesystems that are still
# mounted.
_LEFT = """\
cd "$0" && [ -d results ] || exit 0
for file in results/"$1" results/*/"$1"; do
    [ -f "$file" ] || continue
    folder=${file%/$1}; folder=${folder#results}
    printf '%s\\0' "${folder#/}"; head -c 65536 "$file"; printf '\\0'
    [ ! -f "$file.out.bad" ] || diff -u "tests/$1.out" "$file.out.bad" | head -c 65536
    [ ! -f "$file.dmesg" ] || head -c 65536 "$file.dmesg"
    printf '\\0'
    mkdir -p "../left/${file%/*}"
    for part in "$file"*; do [ ! -f "$part" ] || [ -L "$part" ] || cp "$part" "../left/$part"; done
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A checkout, and the tests to run, such as `loop/001`."""

    root: Path
    tests: tuple[str, ...]


def find_tests(root: Path, names: Sequence[str]) -> Suite:
    """Find the tests of a checkout by `names`: groups (`loop`) or tests (`loop/001`); without names, all of it.

    :raise UsageError: it is no such checkout, or has no such test.
    """
    if not (root / "check").is_file() or not (root / "tests").is_dir():
        raise UsageError(f"{root}: expected a checkout with ./check and tests/, as blktests has them")
    groups = {
        folder.name: _tests(folder)
        for folder in sorted((root / "tests").iterdir())
        if folder.is_dir() and not folder.is_symlink()
    }
    for name, tests in groups.items():
        if tests and not _GROUP.fullmatch(name):
            raise UsageError(
                f"{root}: expected groups of tests with names of letters, digits and - _ . +, at most 64,"
                f" got {name[:100]!r}"
            )
    every = {test for tests in groups.values() for test in tests}
    wanted: dict[str, None] = {}
    for name in names or [group for group in groups if group not in _ON_REQUEST]:
        if name in groups:
            wanted |= dict.fromkeys(groups[name])
        elif name in every:
            wanted[name] = None
        else:
            raise UsageError(
                f"{root}: expected one of its groups ({', '.join(groups)}) or tests such as loop/001, got {name!r}"
            )
    if not wanted:
        raise UsageError(f"{root}: {', '.join(names) or 'it'} has no tests")
    return Suite(root=root, tests=tuple(wanted))


def _tests(group: Path) -> tuple[str, ...]:
    return tuple(
        f"{group.name}/{path.name}" for path in sorted(group.iterdir()) if _TEST.fullmatch(path.name) and path.is_file()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOptions:
    """How to run tests. `disks`: names of the topology's disks that tests may overwrite. `timeout_s`: for each test.
    `quick_s`: the duration of tests that have a configurable one.
    """

    topology: Topology
    kernel: str
    disks: tuple[str, ...]
    timeout_s: float
    quick_s: int | None


def check_suite(options: SuiteOptions) -> None:
    """:raise UsageError: the topology has several guests, or no such disk."""
    guests = options.topology.guests
    if len(guests) != 1:
        raise UsageError(f"--topology: expected one guest, in which each test runs, got {', '.join(guests)}")
    there = next(iter(guests.values())).disks
    for number, name in enumerate(options.disks):
        if name not in there:
            raise UsageError(
                f"--test-disk: expected one of the topology's disks ({', '.join(there) or 'it has none'}), got {name!r}"
            )
        if name in options.disks[:number]:
            raise UsageError(f"--test-disk: expected each disk once, got {name!r} twice")


# Takes each test at its end, with one or more results.
OnTest = Callable[[str, tuple[TestResult, ...]], None]


async def run_suite(testbed: Testbed, suite: Suite, options: SuiteOptions, evidence: Path, on_test: OnTest) -> None:
    """Run every test of a suite, as many at once as this machine has cores and memory for. `evidence`: a folder that
    gets a folder for each test.

    :raise HostError: this machine lacks something.
    """
    (model,) = options.topology.guests.values()
    gate = asyncio.Semaphore(admission.most_at_once(Cores.SHARED, testbed.host, model.memory))
    config = (await testbed.kernel(options.kernel)).config
    home = testbed.new_folder()
    _copy(suite.root, config, home)

    async def one(test: str) -> None:
        async with gate:
            done = await _run_one(testbed, home, test, options, evidence / blktests.results_folder(test))
        on_test(test, done)

    try:
        async with asyncio.TaskGroup() as group:
            for test in suite.tests:
                group.create_task(one(test))
    except ExceptionGroup as failures:
        raise first_error(failures) from None


def _copy(checkout: Path, config: Path | None, home: Path) -> None:
    """Copy the checkout for the guests, so that changes during the run do not matter; leaves out pipes, sockets and
    devices.

    :raise UsageError: it is larger than any such suite. :raise HostError: a file cannot be read, or the copy cannot
    be written.
    """

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name in _LEFT_OUT or not _is_copy(Path(folder, name).lstat().st_mode)]

    try:
        _check_size(checkout)
        shutil.copytree(checkout, home / "checkout", symlinks=True, ignore=left_out)
        if config is not None:
            shutil.copyfile(config, home / "config")
    except shutil.Error as error:
        source, _, why = error.args[0][0]
        raise HostError(f"{source}: cannot be copied: {why}") from error
    except OSError as error:
        raise HostError(f"{error.filename or checkout}: cannot be copied: {error.strerror}") from error


def _check_size(checkout: Path) -> None:
    """:raise UsageError: it has more than can be meant, such as a file that is one hole, or folders in folders
    without end."""
    files = size_bytes = 0
    for folder, below, names in os.walk(checkout):
        below[:] = [name for name in below if name not in _LEFT_OUT]
        if len(Path(folder).relative_to(checkout).parts) >= _MOST_CHECKOUT_LEVELS:
            raise UsageError(
                f"{checkout}: expected a suite of at most {_MOST_CHECKOUT_LEVELS} levels of folders, got more"
            )
        files += len(below)
        for name in names:
            files, size_bytes = files + 1, size_bytes + Path(folder, name).lstat().st_size
        if files > _MOST_CHECKOUT_FILES or size_bytes > _MOST_CHECKOUT_BYTES:
            most = f"at most {_MOST_CHECKOUT_FILES} files and {_MOST_CHECKOUT_BYTES >> 30} GiB"
            raise UsageError(f"{checkout}: expected a suite of {most}, got more")


def _is_copy(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


async def _run_one(
    testbed: Testbed, home: Path, test: str, options: SuiteOptions, evidence: Path
) -> tuple[TestResult, ...]:
    """Run one test in its guest. Any error is the result of this test, unless it has ended before; the other tests
    go on."""
    done: tuple[TestResult, ...] = ()
    status, details = Status.ERROR, tuple[str, ...]()
    try:
        async with testbed.vm(options.topology, kernel=options.kernel, evidence=evidence) as vm:
            done = await _run_in(vm, home, test, options, evidence)
    except GuestLost as lost:
        status, why, details = Status.LOST, lost.why, lost.console_tail
    except TestbedError as error:
        status = Status.LOST if isinstance(error, GuestError) else status
        why, *rest = str(error).splitlines() or [type(error).__name__]
        details = tuple(rest)
    except Exception as error:
        why, details = (
            f"a mistake of the testbed: {type(error).__name__}: {error}",
            tuple(traceback.format_exc().splitlines()),
        )
    else:
        return done
    eventlog.log_event("\n".join((f"{test}: {why}", *details)), failed=True)
    return done or (TestResult(test=test, status=status, reason=why, details=details),)


async def _run_in(vm: Vm, home: Path, test: str, options: SuiteOptions, evidence: Path) -> tuple[TestResult, ...]:
    """Run a test in a guest that is ready."""
    await vm.put(home, _HOME)
    await vm.run("bash", "-c", _PREPARE, _THERE)
    devices = [vm.disks[name].path for name in options.disks]
    try:
        ran = await _bash(vm, _RUN, test, str(options.quick_s or ""), *devices, timeout_s=options.timeout_s)
    except CommandFailed:
        why = f"it did not end within {options.timeout_s:g} s"
        return (TestResult(test=test, status=Status.HANG, reason=why, details=await _list_processes(vm)),)
    try:
        records = await _bash(vm, _LEFT, test)
    except CommandFailed:
        why = "it ended, and its guest does not read files any longer"
        return (TestResult(test=test, status=Status.HANG, reason=why, details=await _list_processes(vm)),)
    printed, left = ran.stdout + ran.stderr, records.stdout
    cut = ran.truncated or records.truncated or max(len(printed), len(left)) > _MOST_BYTES
    source = _read_source(home / "checkout", test)
    done = blktests.read_results(
        test, left[:_MOST_BYTES], printed[:_MOST_BYTES], source, devices=bool(devices), cut=cut
    )
    if any(one.status is Status.FAIL for one in done):
        try:
            await vm.get(f"{_HOME}/left/results", evidence / "results", leave_out=True, most_bytes=_MOST_RECORDS_BYTES)
        except TestbedError as error:
            # The result is known; only its files are missing.
            eventlog.log_event(f"{test}: its files stay in the guest: {error}", failed=True)
    return done


async def _bash(vm: Vm, script: str, *arguments: str, timeout_s: float | None = None) -> Result:
    """Run a bash script; $0 is the folder of the suite."""
    return await vm.run("bash", "-c", script, _THERE, *arguments, check=False, timeout_s=timeout_s)


def _read_source(checkout: Path, test: str) -> str:
    """Read a test's source in our copy of the suite; empty for a link that leads out of the copy."""
    path = (checkout / "tests" / test).resolve()
    if not path.is_relative_to(checkout.resolve()) or not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MOST_SOURCE_BYTES)


async def _list_processes(vm: Vm) -> tuple[str, ...]:
    """List the processes of a guest whose test does not end."""
    try:
        listed = await vm.run("ps", "-eo", "ppid,stat,wchan:24,args", check=False, timeout_s=20)
    except TestbedError:
        return ("the guest does not answer any longer",)
    # Without kernel threads and our own processes; of a script in the arguments only the first line.
    lines = (line[:LONGEST_LINE] for line in listed.stdout[:_MOST_LISTED_CHARACTERS].splitlines())
    known = (
        line
        for line in lines
        if _PROCESS.match(line) and not _OURS.search(line) and line.split(maxsplit=1)[:1] != ["2"]
    )
    return tuple(itertools.islice(known, _MOST_PROCESSES))
