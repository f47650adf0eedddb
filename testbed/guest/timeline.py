"""Runs a guest's timeline: waits for each act's time or event, runs it, and logs it with the times of both clocks.

    async with run_timeline(guest):
        await guest.run("fio", ...)

Writes `timeline.jsonl` into the guest's log folder, one JSON object a line. For each action: `monotonic_s` and
`guest_s` (the guest's uptime) when it began, the action (`do`), and how the disk or the machine is afterwards (`now`),
or the `error`. For each event: `reached`. At the end, for each act that never began: `missed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from testbed.errors import GuestLost, TestbedError, from_code
from testbed.guest import clock, hardware_control
from testbed.guest.clock import Clock
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings
from testbed.host.logfile import Log
from testbed.topology.schedule import TimedAction, format_entry, schedule
from testbed.topology.timeline import TimelineEntry, When

LOG = "timeline.jsonl"
_POLL_S = 0.25


class TimelineRunner:
    """Runs one timeline on one guest.

    `failures`: the errors until now, in order of time. `missed`: the acts that have not begun.
    """

    def __init__(self, guest: Guest, at: Clock, log: Log) -> None:
        self._guest, self._clock, self._log = guest, at, log
        self.failures: list[TestbedError] = []
        self.missed: dict[int, str] = {}

    async def run(self, acts: Sequence[TimelineEntry]) -> None:
        """Run all acts from now on; they do not wait for each other."""
        begin = time.monotonic()
        self.missed = {number: format_entry(act) for number, act in enumerate(acts)}
        async with asyncio.TaskGroup() as group:
            for number, act in enumerate(acts):
                group.create_task(self._act(number, act, begin))

    async def _act(self, number: int, act: TimelineEntry, begin: float) -> None:
        try:
            if act.when is not None:
                event = await self._reached(act.when)
                begin = time.monotonic()
                self._note(begin, act=number, reached=event)
            for timed in schedule(act):
                await asyncio.sleep(max(0.0, begin + timed.after_s - time.monotonic()))
                await self._do(number, timed)
        except TestbedError as error:
            self._failed(number, error)

    async def _do(self, number: int, timed: TimedAction) -> None:
        began = time.monotonic()
        self.missed.pop(number, None)
        try:
            now = await hardware_control.run_action(self._guest, timed.action)
        except GuestLost:
            raise  # nothing more can be done
        except TestbedError as error:
            self._failed(number, from_code(f"timeline: {timed.text}: {error}", error.code), do=timed.text)
        else:
            self._note(began, act=number, do=timed.text, now=now, took_s=round(time.monotonic() - began, 6))

    async def _reached(self, when: When) -> str:
        """Wait for an event; returns its name for the log."""
        if when.mark is not None:
            await self._guest.marks.wait_for_mark(when.mark)
            return f"mark {when.mark}"
        if when.console is not None:
            return f"console: {await self._guest.marks.wait_for_line(when.console)}"
        return await self._counted(when)

    async def _counted(self, when: When) -> str:
        """Wait until a cgroup's counter is above or below a limit."""
        while True:
            # The cgroup may not exist yet.
            value = await readings.read_counter(self._guest, {}, str(when.cgroup), str(when.counter))
            if value is not None and (
                (when.above is not None and value > when.above) or (when.below is not None and value < when.below)
            ):
                return f"{when.cgroup}/{when.counter} is {value}"
            await asyncio.sleep(_POLL_S)

    def _failed(self, number: int, error: TestbedError, **more: Any) -> None:
        self.failures.append(error)
        self._note(time.monotonic(), act=number, **more, error=str(error))

    def log_missed(self) -> None:
        """Log the acts that have not begun, when the timeline ends."""
        for number, act in self.missed.items():
            self._note(time.monotonic(), act=number, missed=act)

    def _note(self, at: float, **words: Any) -> None:
        line = {
            "monotonic_s": round(at, 6),
            "guest_s": round(self._clock.uptime(at), 3),
            "guest_error_s": round(self._clock.error_s, 3),
        }
        self._log.note(line | words)


@contextlib.asynccontextmanager
async def run_timeline(guest: Guest, acts: Sequence[TimelineEntry] | None = None) -> AsyncIterator[list[str]]:
    """Run the timeline of a guest's topology, or `acts`, until the block ends; acts that have not begun by then are in
    the list.

    :raise TestbedError: the error of the first action that failed, unless the block raised another one.
    """
    timeline = guest.model.timeline if acts is None else acts
    missed: list[str] = []
    if not timeline:
        yield missed
        return
    runner = TimelineRunner(guest, await clock.read_clock(guest), guest.log(LOG))
    task = asyncio.create_task(runner.run(timeline))
    try:
        yield missed
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        runner.log_missed()
        missed += runner.missed.values()
    if isinstance(ended, Exception):
        raise ended
    if runner.failures:
        raise runner.failures[0]
