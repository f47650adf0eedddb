"""Somebody else's suite of shell tests in the format of blktests, from a checkout on this machine: each test in a guest of its own."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed import blktests
from testbed.api import Testbed, Vm
from testbed.blktests import Outcome, Status
from testbed.errors import CommandFailed, GuestLost, TestbedError, UsageError
from testbed.topology import Topology

_TEST = re.compile(r"[0-9]{3}")
_THERE = "/root/suite"
_MOST_BYTES = 1 << 20
_MOST_PROCESSES = 40
# $1: the test. $2...: the devices that it may use. A config of the checkout names devices of whoever wrote it.
_RUN = """\
cd "$0" || exit
test=$1; shift
{ printf 'TEST_DEVS=('; printf '%s ' "$@"; echo ')'; } >config
rm -rf results
# In a session of its own: a test that does not end is looked at when nobody waits for it any longer.
setsid ./check "$test" </dev/null &
wait $!
"""
_RECORDS = """\
cd "$0" && [ -d results ] || exit 0
for file in results/*/"$1"; do [ ! -f "$file" ] || { cat "$file"; printf '\\0'; }; done
"""
_DIFFERENCE = """\
cd "$0" && for file in results/*/"$1".out.bad; do [ ! -f "$file" ] || diff -u "tests/$1.out" "$file" | head -c 65536; done
for file in results/*/"$1".dmesg; do [ ! -f "$file" ] || head -c 65536 "$file"; done
true
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A checkout, and those of its tests that are wanted, such as `loop/001`."""

    root: Path
    tests: tuple[str, ...]


def found(root: Path, names: Sequence[str]) -> Suite:
    """The tests of a checkout that `names` say: groups (`loop`), tests (`loop/001`), or all of it.

    :raise UsageError: it is no such checkout, or has no such test.
    """
    if not (root / "check").is_file() or not (root / "tests").is_dir():
        raise UsageError(f"{root}: expected a checkout with ./check and tests/, as blktests has them")
    groups = {
        folder.name: tuple(f"{folder.name}/{file.name}" for file in sorted(folder.iterdir()) if _TEST.fullmatch(file.name))
        for folder in sorted((root / "tests").iterdir())
        if folder.is_dir()
    }
    every = {test for tests in groups.values() for test in tests}
    wanted: dict[str, None] = {}
    for name in names or groups:
        if name in groups:
            wanted |= dict.fromkeys(groups[name])
        elif name in every:
            wanted[name] = None
        else:
            raise UsageError(f"{root}: expected one of its groups ({', '.join(groups)}) or tests such as loop/001, got {name!r}")
    if not wanted:
        raise UsageError(f"{root}: {', '.join(names) or 'it'} has no tests")
    return Suite(root=root, tests=tuple(wanted))


async def run(
    testbed: Testbed,
    suite: Suite,
    topology: Topology,
    kernel: str,
    *,
    disks: Sequence[str],
    timeout_s: float,
    evidence: Path,
    on_outcome: Callable[[Outcome], None],
) -> tuple[Outcome, ...]:
    """Every test of a suite, as many at once as there are cores; in its order. `disks`: those of the topology that tests may overwrite.

    :raise HostError: this machine lacks something. :raise UsageError: there is no such disk.
    """
    there = next(iter(topology.guests.values())).disks
    for name in disks:
        if name not in there:
            raise UsageError(f"--test-disk: expected one of the topology's disks ({', '.join(there) or 'it has none'}), got {name!r}")
    gate = asyncio.Semaphore(testbed.host.cores)
    with tempfile.TemporaryDirectory(prefix="testbed-suite-") as folder:
        copy = Path(folder) / "suite"
        shutil.copytree(suite.root, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", "results"))

        async def one(test: str) -> Outcome:
            async with gate:
                done = await _one(testbed, copy, test, topology, kernel, disks, timeout_s, evidence / test.replace("/", "-"))
            on_outcome(done)
            return done

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(test)) for test in suite.tests]
        except ExceptionGroup as failures:
            # The first failure stops the others, and is the one to report.
            raise failures.exceptions[0] from None
    return tuple(task.result() for task in tasks)


async def _one(
    testbed: Testbed, copy: Path, test: str, topology: Topology, kernel: str, disks: Sequence[str], timeout_s: float, evidence: Path
) -> Outcome:
    try:
        async with testbed.vm(topology, kernel=kernel, evidence=evidence) as vm:
            await vm.put(copy, _THERE)
            try:
                printed = await _said(vm, _RUN, test, *(vm.disks[name].path for name in disks), timeout_s=timeout_s)
            except CommandFailed:
                return Outcome(test=test, status=Status.HANG, reason=f"it did not end within {timeout_s:g} s", details=await _doing(vm))
            records = (await _said(vm, _RECORDS, test)).split("\0")
            return blktests.outcome(test, records, printed, await _said(vm, _DIFFERENCE, test))
    except GuestLost as lost:
        return Outcome(test=test, status=Status.LOST, reason=lost.why, details=lost.console_tail)


async def _said(vm: Vm, script: str, *arguments: str, timeout_s: float | None = None) -> str:
    """What a script of bash prints; $0 is where the suite is."""
    result = await vm.run("bash", "-c", script, _THERE, *arguments, check=False, timeout_s=timeout_s)
    return (result.stdout + result.stderr)[:_MOST_BYTES]


async def _doing(vm: Vm) -> tuple[str, ...]:
    """What a guest does whose test does not end."""
    try:
        listed = await vm.run("ps", "-eo", "ppid,stat,wchan:24,args", check=False, timeout_s=20)
    except TestbedError:
        return ("the guest does not answer any longer",)
    # Without the kernel's own threads.
    return tuple(line for line in listed.stdout.splitlines() if line.split(maxsplit=1)[:1] != ["2"])[:_MOST_PROCESSES]
