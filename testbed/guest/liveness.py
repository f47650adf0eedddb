"""Tracks the state of a guest and what ended it; waits that end early if the guest is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from testbed.errors import GuestLost, HostError, WireBroken
from testbed.guest.channels.console import Console
from testbed.guest.channels.kernel_log import Finding, Kind
from testbed.guest.launch_spec import LaunchSpec
from testbed.guest.lifecycle import Event, Loss, State, advance
from testbed.host import eventlog, failures
from testbed.host.logfile import Log

T = TypeVar("T")

# How long after the first sign of a guest's end its reason may arrive, in seconds.
LAST_WORDS_S = 3.0


async def wait_until_done(work: Coroutine[Any, Any, None]) -> None:
    """Wait until `work` has ended, even if we are cancelled meanwhile, any number of times: a teardown must not be left
    unfinished.
    """
    task, cancelled = asyncio.create_task(work), None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


class Liveness:
    """The state of one guest.

    `loss`: what ended it. `reached`: when each event happened, on the clock of `time.monotonic()`.
    """

    def __init__(self, spec: LaunchSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.state = State.PLANNED
        self.reached: dict[Event, float] = {}
        self.loss: Loss | None = None
        self.console = Console(spec.logs / "console.log", self._on_fatal, self._on_trouble)
        self._stages = self.log("stages.jsonl")
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ending = False

    def log(self, name: str) -> Log:
        """Open one of the guest's log files; a guest whose logs cannot be written is lost."""
        return Log(self.spec.logs / name, self._on_trouble)

    def advance(self, event: Event) -> None:
        """Record an event and the new state."""
        self.state = advance(self.state, event)
        self.reached[event] = now = time.monotonic()
        self._stages.note({"monotonic_s": round(now, 6), "event": event.name, "state": self.state.name})
        self._log_event(event.value)
        self.spec.on_state(self.state)

    def _log_event(self, event: str, *, failed: bool = False) -> None:
        eventlog.log_event(event, guest=self.name, logs=self.spec.logs.name, stage=self.state.value, failed=failed)

    def _lose(self, why: str, loss: Loss) -> None:
        """Record what ended the guest; the first report counts."""
        if not self._lost.done() and not self._ending:
            self.loss = loss
            self._lost.set_result(why)
            self._log_event(why, failed=True)

    def _on_fatal(self, finding: Finding) -> None:
        self._lose(
            f"{finding.kind.value} on its console: {finding.text}",
            Loss.PANIC if finding.kind is Kind.PANIC else Loss.OOPS,
        )

    def _on_trouble(self, why: str) -> None:
        """Handle a failure of this machine: the guest is lost."""
        self._lose(why, Loss.HOST)

    def _watch(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that runs as long as the guest; if the task fails, the guest is lost."""

        async def watched() -> None:
            try:
                await work
            except Exception as error:
                self._on_trouble(failures.describe(error, self.spec.logs))

        return asyncio.create_task(watched())

    async def lost(self) -> str:
        """Wait until the guest is lost, and return why."""
        return await asyncio.shield(self._lost)

    async def wait(self, awaited: Awaitable[T], limit_s: float) -> T:
        """Return the result of `awaited`, unless the guest is lost or `limit_s` passes first.

        :raise GuestLost: the message names the stage and shows the end of the console.
        :raise HostError: the same, if this machine is the reason.
        """
        task: asyncio.Future[T] = asyncio.ensure_future(awaited)
        try:
            first: set[asyncio.Future[Any]] = {task, self._lost}
            await asyncio.wait(first, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            failure = task.exception() if task.done() else None
            if isinstance(failure, WireBroken):
                # The connections of a dying guest break first; give the reason a moment to arrive.
                await asyncio.wait({self._lost}, timeout=LAST_WORDS_S)
            if task.done() and (failure is None or not self._lost.done()):
                return task.result()
            raise self._end(f"what was asked of it did not end within {limit_s:.0f} s{self._why_silent()}") from failure
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _why_silent(self) -> str:
        """Return why a guest may not answer, to be added to a message; or nothing."""
        return ""

    def _end(self, otherwise: str) -> GuestLost | HostError:
        """Return the error of a wait: what ended the guest, or `otherwise`."""
        stage = self.state.value
        if not self._lost.done():
            return GuestLost(self.name, stage, otherwise, self.console.tail())
        if self._lost.cancelled():  # nothing went wrong with it: see Guest.tear_down
            return GuestLost(self.name, stage, "it was ended, or restored, meanwhile")
        if self.state is not State.LOST:
            self.advance(Event.ENDED)
        if self.loss is Loss.HOST:
            return HostError(f"guest {self.name}: {stage}: {self._lost.result()}")
        return GuestLost(self.name, stage, self._lost.result(), self.console.tail())
