"""Somebody else's suite of shell tests in the format of blktests, from a checkout on this machine: each test in a guest of its own."""

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
# The head of a list of processes, or one of them.
_PROCESS = compile_linear(r"\s*(PPID|\d+)\s+[A-Z]\S*\s+\S+\s+\S")
# What every command in a guest comes by: the agent, the SSH server, and the command by which that runs all others.
_OURS = compile_linear(r"/testbed-agent|\bdropbear -|SSH_ORIGINAL_COMMAND")
_HOME = "/root/suite"
_THERE = f"{_HOME}/checkout"
# Of what a test prints, and of its records; of its files that are copied out of its guest; of a test's own text.
_MOST_BYTES = 1 << 20
_MOST_RECORDS_BYTES = 256 << 20
_MOST_SOURCE_BYTES = 1 << 20
# Of a checkout: blktests with its programs has 10 MiB and 1,500 files.
_MOST_CHECKOUT_BYTES, _MOST_CHECKOUT_FILES, _MOST_CHECKOUT_LEVELS = 4 << 30, 200_000, 64
_LEFT_OUT = frozenset({".git", "results"})
# Of a guest's list of processes; of those, what is shown.
_MOST_LISTED_CHARACTERS, _MOST_PROCESSES = 1 << 17, 40
# Groups that are run only where they are asked for: its tests of ./check itself fail on purpose.
_ON_REQUEST = frozenset({"meta"})
# What an init of a distribution does and ours does not, and programs that tests ask for and the image has as busybox only. Without /dev/fd
# bash has no <(...), and ./check finds no test; without a udev daemon some fail by what udevadm says.
_PREPARE = """\
cd "$0"/.. || exit
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do [ -e "/dev/${stream#*:}" ] || ln -s "/proc/self/fd/${stream%:*}" "/dev/${stream#*:}"; done
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
modprobe -q configfs
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
for program in bc hexdump; do command -v "$program" >/dev/null || ln -s "$(command -v busybox)" "/usr/local/bin/$program"; done
[ -e /run/udev/control ] || [ ! -x /lib/systemd/systemd-udevd ] || /lib/systemd/systemd-udevd --daemon
[ ! -f config ] || cp config "/boot/config-$(uname -r)"
true
"""
# $1: the test. $2: seconds for what runs as long as it is told, or nothing. $3...: the devices that it may overwrite. A config of the
# checkout names devices of whoever wrote it.
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
# In a session of its own: a test that does not end is looked at when nobody waits for it any longer.
setsid ./check "$test" </dev/null &
wait $!
"""
# For each record: the folder, the record, how the output differs or what the kernel said. One may lie above all folders. Its files are
# copied away from what else lies there: pipes, and file systems that are still mounted.
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
    """A checkout, and those of its tests that are wanted, such as `loop/001`."""

    root: Path
    tests: tuple[str, ...]


def find_tests(root: Path, names: Sequence[str]) -> Suite:
    """The tests of a checkout that `names` say: groups (`loop`), tests (`loop/001`), or all of it.

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
                f"{root}: expected groups of tests with names of letters, digits and - _ . +, at most 64, got {name[:100]!r}"
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
    """How tests are run. `disks`: those of the topology that they may overwrite. `timeout_s`: for each test. `quick_s`: what a test gets
    that runs as long as it is told, instead of its own time.
    """

    topology: Topology
    kernel: str
    disks: tuple[str, ...]
    timeout_s: float
    quick_s: int | None


def check_suite(how: SuiteOptions) -> None:
    """:raise UsageError: the topology has several guests, or no such disk."""
    guests = how.topology.guests
    if len(guests) != 1:
        raise UsageError(f"--topology: expected one guest, in which each test runs, got {', '.join(guests)}")
    there = next(iter(guests.values())).disks
    for number, name in enumerate(how.disks):
        if name not in there:
            raise UsageError(
                f"--test-disk: expected one of the topology's disks ({', '.join(there) or 'it has none'}), got {name!r}"
            )
        if name in how.disks[:number]:
            raise UsageError(f"--test-disk: expected each disk once, got {name!r} twice")


# Takes each test when it has ended, with an outcome or more.
OnTest = Callable[[str, tuple[TestResult, ...]], None]


async def run_suite(testbed: Testbed, suite: Suite, how: SuiteOptions, evidence: Path, on_test: OnTest) -> None:
    """Run every test of a suite, as many at once as this machine has cores and memory for. `evidence`: a folder that gets one for each test.

    :raise HostError: this machine lacks something.
    """
    (model,) = how.topology.guests.values()
    gate = asyncio.Semaphore(admission.most_at_once(Cores.SHARED, testbed.host, model.memory))
    config = (await testbed.kernel(how.kernel)).config
    home = testbed.new_folder()
    _copied(suite.root, config, home)

    async def one(test: str) -> None:
        async with gate:
            done = await _one(testbed, home, test, how, evidence / blktests.results_folder(test))
        on_test(test, done)

    try:
        async with asyncio.TaskGroup() as group:
            for test in suite.tests:
                group.create_task(one(test))
    except ExceptionGroup as failures:
        raise first_error(failures) from None


def _copied(checkout: Path, config: Path | None, home: Path) -> None:
    """A copy of what guests get, which nobody changes meanwhile; pipes, sockets and devices that lie there are no part of it.

    :raise UsageError: it is larger than any such suite. :raise HostError: there is no room for it, or a file cannot be read.
    """

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name in _LEFT_OUT or not _is_copied(Path(folder, name).lstat().st_mode)]

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
    """:raise UsageError: it has more than can be meant, such as a file that is one hole, or folders in folders without end."""
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


def _is_copied(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


async def _one(testbed: Testbed, home: Path, test: str, how: SuiteOptions, evidence: Path) -> tuple[TestResult, ...]:
    """One test in its guest. Whatever goes wrong with either is this test's, unless it has ended by then: others go on."""
    done: tuple[TestResult, ...] = ()
    status, details = Status.ERROR, tuple[str, ...]()
    try:
        async with testbed.vm(how.topology, kernel=how.kernel, evidence=evidence) as vm:
            done = await _ran(vm, home, test, how, evidence)
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


async def _ran(vm: Vm, home: Path, test: str, how: SuiteOptions, evidence: Path) -> tuple[TestResult, ...]:
    """How a test ended in a guest that is ready."""
    await vm.put(home, _HOME)
    await vm.run("bash", "-c", _PREPARE, _THERE)
    devices = [vm.disks[name].path for name in how.disks]
    try:
        ran = await _asked(vm, _RUN, test, str(how.quick_s or ""), *devices, timeout_s=how.timeout_s)
    except CommandFailed:
        why = f"it did not end within {how.timeout_s:g} s"
        return (TestResult(test=test, status=Status.HANG, reason=why, details=await _doing(vm)),)
    try:
        records = await _asked(vm, _LEFT, test)
    except CommandFailed:
        why = "it ended, and its guest does not read files any longer"
        return (TestResult(test=test, status=Status.HANG, reason=why, details=await _doing(vm)),)
    printed, left = ran.stdout + ran.stderr, records.stdout
    cut = ran.truncated or records.truncated or max(len(printed), len(left)) > _MOST_BYTES
    source = _source(home / "checkout", test)
    done = blktests.read_results(
        test, left[:_MOST_BYTES], printed[:_MOST_BYTES], source, devices=bool(devices), cut=cut
    )
    if any(one.status is Status.FAIL for one in done):
        try:
            await vm.get(f"{_HOME}/left/results", evidence / "results", leave_out=True, most_bytes=_MOST_RECORDS_BYTES)
        except TestbedError as error:
            # What it came to is known; only its files are not here.
            eventlog.log_event(f"{test}: its files stay in the guest: {error}", failed=True)
    return done


async def _asked(vm: Vm, script: str, *arguments: str, timeout_s: float | None = None) -> Result:
    """Run a script of bash; $0 is where the suite is."""
    return await vm.run("bash", "-c", script, _THERE, *arguments, check=False, timeout_s=timeout_s)


def _source(checkout: Path, test: str) -> str:
    """A test's own text, in our copy of its suite; nothing of a link that leads out of that."""
    path = (checkout / "tests" / test).resolve()
    if not path.is_relative_to(checkout.resolve()) or not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MOST_SOURCE_BYTES)


async def _doing(vm: Vm) -> tuple[str, ...]:
    """What a guest does whose test does not end."""
    try:
        listed = await vm.run("ps", "-eo", "ppid,stat,wchan:24,args", check=False, timeout_s=20)
    except TestbedError:
        return ("the guest does not answer any longer",)
    # Without the kernel's own threads, what brought us here, and of a script that is an argument all but its first line.
    lines = (line[:LONGEST_LINE] for line in listed.stdout[:_MOST_LISTED_CHARACTERS].splitlines())
    known = (
        line
        for line in lines
        if _PROCESS.match(line) and not _OURS.search(line) and line.split(maxsplit=1)[:1] != ["2"]
    )
    return tuple(itertools.islice(known, _MOST_PROCESSES))
