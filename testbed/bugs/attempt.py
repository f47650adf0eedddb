"""One try to see a bug: a fresh guest with the bug's topology, its scripts, and a watch over everything that the signature names.

Whatever the guest does to itself ends as a `Try` that says what it was, within the bug's timeout and some seconds to find that out.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from testbed.bugs import io_accounting, script_runner, shell_messages
from testbed.bugs import outcome as tries
from testbed.bugs.counter_baseline import CounterBaseline
from testbed.bugs.io_accounting import Account
from testbed.bugs.model import Bug
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.script_files import CANNOT_TRY
from testbed.bugs.signature import End, Match, Watch
from testbed.errors import CommandFailed, GuestError, GuestLost, HostError, ReadingError, TestbedError, WireBroken
from testbed.guest.channels.console import Console
from testbed.guest.channels.kernel_log import Finding
from testbed.guest.channels.ssh import Result
from testbed.guest.debug import gdb, vmcore
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.guest.lifecycle import Loss
from testbed.guest.metrics.disk_sampler import sampling_disks
from testbed.guest.setup import apply
from testbed.guest.timeline import run_timeline
from testbed.host import failures
from testbed.host.admission import Cores
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology.model import GuestModel

_POLL_S = 1.0
# What scripts print is kept as it comes, and so much of it.
OUTPUT, _MAX_OUTPUT_BYTES = "output.txt", 8 << 20
# How long a guest whose SSH is silent may take to say that it lives; it gets more where its host is slow.
_ANSWER_S = 5.0
_ENDS = {
    Loss.PANIC: End.PANIC,
    Loss.OOPS: End.OOPS,
    Loss.POWER_OFF: End.POWER_OFF,
    Loss.REBOOT: End.REBOOT,
    Loss.QEMU: End.QEMU,
}


# Keeps a guest whose signature has just shown; it goes when this returns.
Hold = Callable[[Guest, Match], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try that is wanted. `hold`: what to do with the guest at the moment of the signature, which stands still then if `paused`.
    `dump`: write its memory into its folder where it shows the bug, hangs or dies.
    """

    factory: GuestFactory
    bug: Bug
    guest: GuestModel
    kernel: KernelFiles
    number: int
    seed: int
    timeout_s: float
    evidence: Path
    hold: Hold | None = None
    paused: bool = False
    dump: bool = False


@dataclass(slots=True)
class _Run:
    """What is known of a try while it runs."""

    watch: Watch
    tally: CounterBaseline
    kept: BinaryIO | None = None
    end: End = End.UNTRIED
    why: str = ""
    began: float = 0.0
    ended: float = 0.0
    hit_at: float | None = None
    status: int | None = None
    accounts: tuple[Account, ...] = ()
    hit: asyncio.Event = field(default_factory=asyncio.Event)

    def console(self, data: bytes) -> None:
        self.watch.hear_console(data)
        self.look()

    def output(self, data: bytes) -> None:
        self._keep(data)
        self.watch.hear_output(data)
        self.look()

    def errors(self, data: bytes) -> None:
        self._keep(data)
        self.watch.hear_errors(data)
        self.look()

    def _keep(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if self.kept is not None:
                self.kept.write(data[: max(0, _MAX_OUTPUT_BYTES - self.kept.tell())])

    def look(self) -> None:
        if self.watch.hit is not None and self.hit_at is None:
            self.hit_at = time.monotonic()
            self.hit.set()


async def attempt(wanted: Attempt) -> Try:
    """Try once, as soon as the host has room. Whatever goes wrong with it is this try's trouble, and the others go on.

    :raise HostError: this machine cannot run guests; no other try will do better.
    """
    factory, hold = wanted.factory, wanted.hold
    cores = Cores(wanted.bug.cores).count(factory.host)
    async with factory.admitted((wanted.guest,), wanted.evidence.name, cores=cores) as ticket:

        async def resting(guest: Guest, match: Match) -> None:
            ticket.rest()
            if hold is not None:
                await hold(guest, match)

        return await _attempt(wanted if hold is None else replace(wanted, hold=resting))


async def _attempt(wanted: Attempt) -> Try:
    started = ready = time.monotonic()
    run = _run(wanted.bug)
    findings: list[Finding] = []
    console: Console | None = None
    dump = ""
    try:
        async with wanted.factory.guest("g0", wanted.guest, wanted.kernel, wanted.evidence) as guest:
            console, findings = guest.console, guest.console.findings
            ready = time.monotonic()
            await _tried(guest, wanted, run)
            if wanted.dump and (run.watch.hit is not None or run.end not in (End.DONE, End.STOPPED)):
                dump = await vmcore.write_dump_or_reason(guest, wanted.evidence / "vmcore")
            if wanted.hold is not None and run.watch.hit is not None and run.end not in (End.STOPPED, End.QEMU):
                await wanted.hold(guest, run.watch.hit)
    except HostError:
        raise
    except Exception as error:
        # A guest that is gone after its script has ended has shown what there was to show.
        if run.end in (End.UNTRIED, End.DONE) or not isinstance(error, GuestError):
            run.why = failures.describe(error, wanted.evidence)
            run.end = run.end if isinstance(error, GuestError) or run.watch.hit is not None else End.UNTRIED
    outcome = _outcome(run)
    found = Try(
        number=wanted.number,
        seed=wanted.seed,
        outcome=outcome,
        end=run.end,
        why=run.why or run.end.value,
        match=run.watch.hit,
        ready_s=ready - started,
        took_s=max(0.0, run.ended - run.began),
        hit_after_s=None if run.hit_at is None or run.watch.hit is None else run.hit_at - run.began,
        status=run.status,
        console_bytes=console.printed_bytes if console is not None else 0,
        findings=tuple(findings),
        evidence=wanted.evidence,
        dump=dump,
        accounts=run.accounts,
        last_line=run.watch.last,
        uncounted=tuple(map(str, run.watch.uncounted)),
    )
    tries.record(found)
    return found


def _run(bug: Bug) -> _Run:
    watch = Watch(bug.signature, bug.main)
    return _Run(watch, CounterBaseline(watch))


def _outcome(run: _Run) -> Outcome:
    """What a run shows that is over; where it shows nothing on account of its script, it says why."""
    if run.watch.hit is not None:
        return Outcome.HIT
    if run.end in (End.DONE, End.TIMED_OUT) and (unknown := run.watch.unknown(run.status)):
        run.why = f"nothing is known: {unknown}"
        return Outcome.TROUBLE
    if run.end is End.DONE and run.tally.unknown:
        run.why = run.tally.unknown
        return Outcome.TROUBLE
    return Outcome.MISS if run.end is End.DONE else Outcome.TROUBLE


async def _tried(guest: Guest, wanted: Attempt, run: _Run) -> None:
    """Make the stack, run the scripts under the watch, and find out how it ended.

    :raise GuestError: it came to nothing before the script.
    """
    bug = wanted.bug
    stack, _ = await apply.apply_steps(guest)
    guest.marks.reach(apply.STACK_MARK)
    environment = script_runner.script_environment(guest, stack, wanted.seed)
    if wanted.dump or wanted.hold is not None:
        await guest.keep_qemu_after_end()
        await vmcore.prepare_dump(guest)  # later it may not answer
    if wanted.hold is not None:
        await gdb.read_symbols(guest)
    try:
        if bug.preparation is not None:
            limit_s = max(guest.deadlines.command_s, wanted.timeout_s)
            done = await guest.wait(
                script_runner.run_script(guest, bug.preparation, environment, timeout_s=limit_s), limit_s + 5
            )
            if unable := shell_messages.cannot_run(bug.preparation, done.stdout, done.stderr):
                raise GuestError(f"prepare: {unable[0]}")
    except CommandFailed as error:
        raise GuestError(f"prepare: {error}") from error
    before = await io_accounting.snapshot_before(guest) if guest.disks and wanted.hold is None else None
    with (guest.logs / OUTPUT).open("wb", buffering=0) as run.kept, guest.console.listening(run.console):
        run.began = time.monotonic()
        try:
            async with sampling_disks(guest), run_timeline(guest):
                await _watched(guest, wanted, run, environment)
        except GuestLost:
            await _lost(guest, run)
        except TestbedError as error:
            if guest.loss is Loss.HOST:
                raise
            # An act of the timeline was refused: whatever the script saw, it was not the bug's hardware.
            run.end, run.why = End.UNTRIED, str(error) if isinstance(error, ReadingError) else f"its timeline: {error}"
        if run.end is End.TIMED_OUT or run.end is End.SSH:
            await _asked(guest, run)
        if before is not None:
            answers = guest.loss is None and not wanted.paused and run.end in (End.DONE, End.STOPPED, End.TIMED_OUT)
            run.accounts = await io_accounting.snapshot_after(guest, before, answers=answers)
    run.look()


async def _watched(guest: Guest, wanted: Attempt, run: _Run, environment: Mapping[str, str]) -> None:
    """Run the script until it ends, the signature shows, the guest goes, or the time is over."""
    limit_s, heard = wanted.timeout_s + 60, (run.output, run.errors)
    running = script_runner.run_script(
        guest, wanted.bug.main, environment, check=False, timeout_s=limit_s, listeners=heard
    )
    script: asyncio.Task[Result] = asyncio.create_task(running)
    lost = asyncio.create_task(guest.lost())
    hit = asyncio.create_task(run.hit.wait())
    polling = [asyncio.create_task(_poll(guest, run))] if run.watch.counters else []
    try:
        for after_s in (*run.watch.hangs_s, wanted.timeout_s):
            left_s = run.began + after_s - time.monotonic()
            done, _ = await asyncio.wait(
                {script, lost, hit, *polling}, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                break
            run.watch.hangs(after_s)
            run.look()
            if run.watch.hit is not None:
                break
        run.ended = time.monotonic()
        for task in polling:
            if task.done():
                task.result()  # it ends by an error alone
        if lost.done():
            await _lost(guest, run)
        elif run.watch.hit is not None:
            if wanted.paused:
                await guest.monitor.execute("stop")
            elif run.watch.rests_on_script:
                await script_runner.wait_until_idle(guest, _ANSWER_S)
                run.watch.doubt()
            run.end = End.DONE if run.watch.hit is None else End.STOPPED
            if wanted.hold is not None and run.watch.hit is not None:
                await wanted.hold(guest, run.watch.hit)  # the script goes on, or stands still with its guest
        elif script.done():
            await _ended(guest, run, script)
        else:
            run.end = End.TIMED_OUT
    finally:
        for one in (script, lost, hit, *polling):
            one.cancel()
        await asyncio.gather(script, lost, hit, *polling, return_exceptions=True)


async def _ended(guest: Guest, run: _Run, script: asyncio.Task[Result]) -> None:
    """The script has ended, or its connection has."""
    failure = script.exception()
    if failure is None:
        result = script.result()
        if result.status >= 0 or result.signal:
            number = signal.Signals[f"SIG{result.signal}"] if result.signal in _SIGNALS else 0
            run.status = 128 + number if result.signal else result.status
            run.end = End.UNTRIED if run.status == CANNOT_TRY else End.DONE
            run.why = (
                f"the script says that it could not try (status {CANNOT_TRY}): {_last(result)}"
                if run.end is End.UNTRIED
                else ""
            )
            if run.end is End.DONE:
                await _count(guest, run, everything=True)
                run.watch.ended(run.status)
                run.why = run.watch.ending(run.status)
                run.look()
            return
    elif not isinstance(failure, WireBroken | CommandFailed):
        raise failure
    # The connection ended without a status: the guest may be ending as well.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(4):
            await guest.lost()
    if guest.loss is not None:
        await _lost(guest, run)
    else:
        run.end = End.SSH


_SIGNALS = {one.name.removeprefix("SIG") for one in signal.Signals}


def _last(result: Result) -> str:
    return (result.stderr or result.stdout).strip()[-300:] or "(no output)"


async def _lost(guest: Guest, run: _Run) -> None:
    """The guest is gone: hear the last of its console, and say what it was."""
    run.ended = run.ended or time.monotonic()
    run.why = await guest.lost()
    if guest.loss is Loss.HOST:
        raise HostError(f"guest {guest.name}: {run.why}")
    await guest.console.wait_until_quiet()
    run.end = _ENDS.get(guest.loss or Loss.QEMU, End.QEMU)
    run.watch.no_more()
    run.watch.guest_ended(run.end)
    run.look()


async def _asked(guest: Guest, run: _Run) -> None:
    """The script has not ended in time, or its connection broke: does anything of the guest still answer?"""
    slow = guest.deadlines.ssh_s / 20
    lives = await guest.agent_answers(_ANSWER_S * slow)
    if guest.loss is not None:
        await _lost(guest, run)
        return
    if not lives:
        run.end = End.HANG
    elif run.end is End.TIMED_OUT:
        await _count(guest, run, everything=True)
    run.watch.no_more()
    run.watch.guest_ended(run.end)


async def _poll(guest: Guest, run: _Run) -> None:
    while True:
        await asyncio.sleep(_POLL_S)
        await _count(guest, run)


async def _count(guest: Guest, run: _Run, *, everything: bool = False) -> None:
    """Read the counters that the signature names, or all there are, which are kept."""
    lines = await run.tally.read(guest, everything=everything)
    if lines:
        (guest.logs / "counters.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    run.look()
