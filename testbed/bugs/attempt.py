"""Runs one try of a bug: a fresh guest with its topology and scripts, watched for all that the signature names.

Whatever happens to the guest ends as a `Try` that says why, within the bug's timeout and the few seconds that it takes
to find out.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.bugs import io_accounting, script_runner, shell_messages
from testbed.bugs import outcome as tries
from testbed.bugs.io_accounting import Account
from testbed.bugs.model import Bug
from testbed.bugs.observer import Observer
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.script_files import CANNOT_TRY
from testbed.bugs.signature import End, Match, SignatureMatcher
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

# How long a guest whose SSH is silent may take to prove that it lives; it gets longer where its host is slow.
_ANSWER_S = 5.0
_ENDS = {
    Loss.PANIC: End.PANIC,
    Loss.OOPS: End.OOPS,
    Loss.POWER_OFF: End.POWER_OFF,
    Loss.REBOOT: End.REBOOT,
    Loss.QEMU: End.QEMU,
}
_SIGNALS = {one.name.removeprefix("SIG") for one in signal.Signals}

# Holds a guest whose signature has just shown; the guest ends when this returns.
HoldGuest = Callable[[Guest, Match], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """Describes one try. `logs`: the folder of its guest's log files. `hold`: called with the guest once the signature
    shows; with `paused` the guest's CPUs are stopped then. `dump`: write the guest's memory into `logs` where it shows
    the bug, hangs or dies.
    """

    factory: GuestFactory
    bug: Bug
    guest: GuestModel
    kernel: KernelFiles
    number: int
    seed: int
    timeout_s: float
    logs: Path
    hold: HoldGuest | None = None
    paused: bool = False
    dump: bool = False


async def run_attempt(spec: AttemptSpec) -> Try:
    """Try once, as soon as the host admits the guest. Any failure but a HostError is this try's TROUBLE, and other
    tries go on.

    :raise HostError: this machine cannot run guests; another try would fail in the same way.
    """
    factory, hold = spec.factory, spec.hold
    cores = Cores(spec.bug.cores).count(factory.host)
    async with factory.admitted((spec.guest,), spec.logs.name, cores=cores) as ticket:

        async def hold_idle(guest: Guest, match: Match) -> None:
            ticket.release_cores()
            if hold is not None:
                await hold(guest, match)

        return await Attempt(spec if hold is None else replace(spec, hold=hold_idle)).run()


class Attempt:
    """One try while it runs, and what is known of it so far."""

    def __init__(self, spec: AttemptSpec) -> None:
        self._spec = spec
        self.matcher = SignatureMatcher(spec.bug.signature, spec.bug.main)
        self._observer = Observer(self.matcher)
        self._end, self.why = End.UNTRIED, ""
        self._began = self._ended = 0.0
        self._status: int | None = None
        self._accounts: tuple[Account, ...] = ()
        self._console: Console | None = None
        self._findings: list[Finding] = []
        self._dump = ""

    async def run(self) -> Try:
        """Start the guest, try, and write the outcome beside the guest's logs.

        :raise HostError: as `run_attempt`.
        """
        spec = self._spec
        started = ready = time.monotonic()
        try:
            async with spec.factory.guest("g0", spec.guest, spec.kernel, spec.logs) as guest:
                self._console, self._findings = guest.console, guest.console.findings
                ready = time.monotonic()
                await self.try_on(guest)
                await self._dump_or_hold(guest)
        except HostError:
            raise
        except Exception as error:
            # A guest that is lost after its script has ended has shown all that there was to show.
            if self._end in (End.UNTRIED, End.DONE) or not isinstance(error, GuestError):
                self.why = failures.describe(error, spec.logs)
                is_known = isinstance(error, GuestError) or self.matcher.hit is not None
                self._end = self._end if is_known else End.UNTRIED
        done = self._result(ready - started)
        tries.record(done)
        return done

    async def _dump_or_hold(self, guest: Guest) -> None:
        spec, hit = self._spec, self.matcher.hit
        if spec.dump and (hit is not None or self._end not in (End.DONE, End.STOPPED)):
            self._dump = await vmcore.write_dump_or_reason(guest, spec.logs / "vmcore")
        if spec.hold is not None and hit is not None and self._end not in (End.STOPPED, End.QEMU):
            await spec.hold(guest, hit)

    def _result(self, ready_s: float) -> Try:
        spec, hit, hit_at = self._spec, self.matcher.hit, self._observer.hit_at
        outcome = self.outcome()  # which may set the reason
        return Try(
            number=spec.number,
            seed=spec.seed,
            outcome=outcome,
            end=self._end,
            why=self.why or self._end.value,
            match=hit,
            ready_s=ready_s,
            took_s=max(0.0, self._ended - self._began),
            hit_after_s=None if hit_at is None or hit is None else hit_at - self._began,
            status=self._status,
            console_bytes=self._console.printed_bytes if self._console is not None else 0,
            findings=tuple(self._findings),
            logs=spec.logs,
            dump=self._dump,
            accounts=self._accounts,
            last_line=self.matcher.last_line,
            uncounted=tuple(map(str, self.matcher.uncounted)),
        )

    def outcome(self) -> Outcome:
        """The outcome of a try that has ended. Sets `why` where neither a hit nor a miss can be told."""
        if self.matcher.hit is not None:
            return Outcome.HIT
        if self._end in (End.DONE, End.TIMED_OUT) and (unknown := self.matcher.why_unknown(self._status)):
            self.why = f"nothing is known: {unknown}"
            return Outcome.TROUBLE
        if self._end is End.DONE and self._observer.unread_counters:
            self.why = self._observer.unread_counters
            return Outcome.TROUBLE
        return Outcome.MISS if self._end is End.DONE else Outcome.TROUBLE

    async def try_on(self, guest: Guest) -> None:
        """Build the block stack, run the scripts while the signature is watched, and find out how the try ended.

        :raise GuestError: the stack or the `prepare` script failed.
        """
        spec = self._spec
        environment = await self._prepare(guest)
        before = await io_accounting.snapshot_before(guest) if guest.disks and spec.hold is None else None
        with self._observer.write_output_to(guest.logs), guest.console.listening(self._observer.on_console):
            self._began = time.monotonic()
            try:
                async with sampling_disks(guest), run_timeline(guest):
                    await self._run_script(guest, environment)
            except GuestLost:
                await self._guest_lost(guest)
            except TestbedError as error:
                if guest.loss is Loss.HOST:
                    raise
                # An action of the timeline was refused: whatever the script saw, it was not the bug's hardware.
                self._end = End.UNTRIED
                self.why = str(error) if isinstance(error, ReadingError) else f"its timeline: {error}"
            if self._end is End.TIMED_OUT or self._end is End.SSH:
                await self._check_guest_answers(guest)
            if before is not None:
                ended = self._end in (End.DONE, End.STOPPED, End.TIMED_OUT)
                answers = guest.loss is None and not spec.paused and ended
                self._accounts = await io_accounting.snapshot_after(guest, before, answers=answers)
        self._observer.check()

    async def _prepare(self, guest: Guest) -> Mapping[str, str]:
        """Build the stack and run the bug's `prepare` script; returns the environment of its scripts.

        :raise GuestError: one of them failed.
        """
        spec, bug = self._spec, self._spec.bug
        stack, _ = await apply.apply_steps(guest)
        guest.marks.reach(apply.STACK_MARK)
        environment = script_runner.script_environment(guest, stack, spec.seed)
        if spec.dump or spec.hold is not None:
            await guest.keep_qemu_after_end()
            await vmcore.prepare_dump(guest)  # now: later the guest may not answer
        if spec.hold is not None:
            await gdb.read_symbols(guest)
        try:
            if bug.preparation is not None:
                limit_s = max(guest.deadlines.command_s, spec.timeout_s)
                done = await guest.wait(
                    script_runner.run_script(guest, bug.preparation, environment, timeout_s=limit_s), limit_s + 5
                )
                if failed := shell_messages.cannot_run(bug.preparation, done.stdout, done.stderr):
                    raise GuestError(f"prepare: {failed[0]}")
        except CommandFailed as error:
            raise GuestError(f"prepare: {error}") from error
        return environment

    async def _run_script(self, guest: Guest, environment: Mapping[str, str]) -> None:
        """Run the script until it ends, the signature shows, the guest is lost, or the timeout is over."""
        spec, observer = self._spec, self._observer
        listeners = (observer.on_output, observer.on_errors)
        running = script_runner.run_script(
            guest, spec.bug.main, environment, check=False, timeout_s=spec.timeout_s + 60, listeners=listeners
        )
        script: asyncio.Task[Result] = asyncio.create_task(running)
        lost = asyncio.create_task(guest.lost())
        hit = asyncio.create_task(observer.hit.wait())
        polling = [asyncio.create_task(observer.poll_counters(guest))] if self.matcher.counters else []
        try:
            await self._wait_for_any(script, lost, hit, *polling)
            self._ended = time.monotonic()
            for task in polling:
                if task.done():
                    task.result()  # polling ends only by an error
            if lost.done():
                await self._guest_lost(guest)
            elif self.matcher.hit is not None:
                await self._signature_shown(guest)
            elif script.done():
                await self._script_ended(guest, script)
            else:
                self._end = End.TIMED_OUT
        finally:
            for one in (script, lost, hit, *polling):
                one.cancel()
            await asyncio.gather(script, lost, hit, *polling, return_exceptions=True)

    async def _wait_for_any(self, *tasks: asyncio.Task[Any]) -> None:
        """Wait until one of the tasks is done, a `hang` of the signature shows, or the timeout is over."""
        for after_s in (*self.matcher.hang_limits_s, self._spec.timeout_s):
            left_s = self._began + after_s - time.monotonic()
            done, _ = await asyncio.wait(tasks, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
            self.matcher.feed_runtime(after_s)
            self._observer.check()
            if self.matcher.hit is not None:
                break

    async def _signature_shown(self, guest: Guest) -> None:
        spec = self._spec
        if spec.paused:
            await guest.monitor.execute("stop")
        elif self.matcher.rests_on_script:
            await script_runner.wait_until_idle(guest, _ANSWER_S)
            self.matcher.drop_doubtful_hit()
        self._end = End.DONE if self.matcher.hit is None else End.STOPPED
        if spec.hold is not None and self.matcher.hit is not None:
            await spec.hold(guest, self.matcher.hit)  # the script goes on meanwhile, or is stopped with its guest

    async def _script_ended(self, guest: Guest, script: asyncio.Task[Result]) -> None:
        """Handle the end of the script, or of its SSH connection."""
        failure = script.exception()
        if failure is None:
            result = script.result()
            if result.status >= 0 or result.signal:
                await self._script_exited(guest, result)
                return
        elif not isinstance(failure, WireBroken | CommandFailed):
            raise failure
        # The connection ended without a status: the guest may be ending as well.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(4):
                await guest.lost()
        if guest.loss is not None:
            await self._guest_lost(guest)
        else:
            self._end = End.SSH

    async def _script_exited(self, guest: Guest, result: Result) -> None:
        number = signal.Signals[f"SIG{result.signal}"] if result.signal in _SIGNALS else 0
        self._status = 128 + number if result.signal else result.status
        if self._status == CANNOT_TRY:
            self._end = End.UNTRIED
            self.why = f"the script says that it could not try (status {CANNOT_TRY}): {_last_output(result)}"
            return
        self._end = End.DONE
        await self._observer.read_counters(guest, everything=True)
        self.matcher.script_ended(self._status)
        self.why = self.matcher.describe_exit(self._status)
        self._observer.check()

    async def _guest_lost(self, guest: Guest) -> None:
        """Read the rest of the lost guest's console, and note why it was lost.

        :raise HostError: this machine has ended it.
        """
        self._ended = self._ended or time.monotonic()
        self.why = await guest.lost()
        if guest.loss is Loss.HOST:
            raise HostError(f"guest {guest.name}: {self.why}")
        await guest.console.wait_until_quiet()
        self._end = _ENDS.get(guest.loss or Loss.QEMU, End.QEMU)
        self._feed_guest_end()
        self._observer.check()

    async def _check_guest_answers(self, guest: Guest) -> None:
        """Find out whether a guest still answers whose script did not end in time, or whose SSH connection broke."""
        slow = guest.deadlines.ssh_s / 20
        lives = await guest.agent_answers(_ANSWER_S * slow)
        if guest.loss is not None:
            await self._guest_lost(guest)
            return
        if not lives:
            self._end = End.HANG
        elif self._end is End.TIMED_OUT:
            await self._observer.read_counters(guest, everything=True)
        self._feed_guest_end()

    def _feed_guest_end(self) -> None:
        self.matcher.flush()
        self.matcher.guest_ended(self._end)


def _last_output(result: Result) -> str:
    return (result.stderr or result.stdout).strip()[-300:] or "(no output)"
