"""Ends a command whose event loop is stuck, on a signal or on its own, whatever Python code it is stuck in.

asyncio's own signal handlers run between two callbacks, and so never while a callback loops. These handlers are
Python's, which run between two instructions, and inside of `re` as well, in the main thread, where the loop runs. They
ask the loop to call back. If it does not, they raise a KeyboardInterrupt at the point where it is stuck: asyncio lets
that out of the loop at once, and cancels all tasks, so that guests are taken down and results written as usual.

A stuck loop burns CPU time; a loop that is starved, stopped or suspended does not. So the timer (ITIMER_PROF) counts
the CPU time of this process, and the limit that of the loop's thread. Code that handles no signal, such as C code that
computes for minutes, is ended by the kernel (ITIMER_VIRTUAL).
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from testbed.errors import UsageError
from testbed.host import eventlog

# CPU seconds for one turn of the loop. The longest legitimate one, a hash of a large file, takes some seconds.
LIMIT = "TESTBED_TURN_LIMIT"
_LIMIT_S = 120.0
# From a signal until the loop is interrupted; and from there until it is interrupted again: results are written and
# guests taken down meanwhile.
_GRACE_S, _GRACE_WHILE_ENDING_S = 5.0, 30.0
_MOST_INTERRUPTIONS = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FRAMES = 40


class Interrupted(KeyboardInterrupt):
    """A signal came, and the loop did not turn."""


class StoodStill(KeyboardInterrupt):
    """The loop did not turn for too long."""


class Watchdog:
    """Watches the loop of this thread.

    `caught`: the signals that came; `stood`: for how long, and where, the loop was stuck that was ended for it, or
    empty; `stack`: the whole stack of that place.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float, on_second: Callable[[], None]) -> None:
        self._loop, self._limit_s, self._on_second = loop, limit_s, on_second
        self.caught: list[signal.Signals] = []
        self.stood = self.stack = ""
        self._task: asyncio.Task[Any] | None = None
        self._answered = True  # the loop has answered the last request to call back
        self._asked_cpu_s = self._asked_s = 0.0
        self._ending = False  # the loop is about to end, or was interrupted
        self._interruptions = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch from before the loop starts until nothing of it runs any longer."""
        before = {
            number: signal.getsignal(number) or signal.SIG_DFL for number in (*_SIGNALS, signal.SIGPROF, signal.SIGALRM)
        }
        for number in _SIGNALS:
            # nohup(1) makes the program ignore SIGHUP; that stays so.
            if number != signal.SIGHUP or before[number] is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.signal(signal.SIGPROF, self._on_cpu_time)
        if sys.__stderr__ is not None:
            faulthandler.register(signal.SIGVTALRM, file=sys.__stderr__, chain=True)
        self._loop.set_exception_handler(_handle_exception)
        signal.setitimer(signal.ITIMER_PROF, self._limit_s / 4, self._limit_s / 4)
        self._postpone_kill()
        try:
            yield
        finally:
            for timer in (signal.ITIMER_PROF, signal.ITIMER_VIRTUAL, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)
            faulthandler.unregister(signal.SIGVTALRM)
            for number, handler in before.items():
                signal.signal(number, handler)

    def watch(self, task: asyncio.Task[Any] | None) -> None:
        """Cancel this task on a signal, also on one that came before."""
        self._task = task
        if self._ending:
            self._end()

    def _postpone_kill(self) -> None:
        """Let the kernel end this process only after twice the limit from now, with a dump of its stack."""
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * self._limit_s)

    # Requests to the loop --------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        if not self._loop.is_closed():
            self._answered = False
            self._asked_cpu_s, self._asked_s = time.thread_time(), time.monotonic()
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._answered = True
        self._postpone_kill()

    def _end(self) -> None:
        """Cancel the task; runs in the loop."""
        self._ending = True
        if self._task is not None:
            self._task.cancel()

    # Signal handlers, which run at any point of the thread -----------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(signal.Signals(number))
        if len(self.caught) > 2:
            os._exit(128 + number)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end if len(self.caught) == 1 else self._on_second)
        if len(self.caught) == 1:
            self._ask()
            self._start_alarm()

    def _start_alarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, _GRACE_S, _GRACE_S)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        """Check whether a loop that must end answers."""
        if self._answered:
            self._ask()
        elif time.monotonic() - self._asked_s > (_GRACE_WHILE_ENDING_S if self._ending else _GRACE_S / 2):
            self._interrupt(Interrupted())

    def _on_cpu_time(self, number: int, frame: FrameType | None) -> None:
        if self._answered:
            self._ask()
        elif not self.stood and (took_s := time.thread_time() - self._asked_cpu_s) >= self._limit_s:
            stack = traceback.extract_stack(frame)[-_FRAMES:]
            last = stack[-1]
            place = f"{Path(last.filename).name}:{last.lineno} in {last.name}"
            self.stood = f"the event loop did not turn for {took_s:.1f} s of CPU time, at {place}"
            self.stack = "".join(traceback.format_list(stack))
            eventlog.log_event(f"{self.stood}\n{self.stack}", failed=True)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._end)
            self._start_alarm()
            self._interrupt(StoodStill())

    def _interrupt(self, error: KeyboardInterrupt) -> None:
        self._interruptions += 1
        if self._interruptions > _MOST_INTERRUPTIONS:
            # Its child processes end with it, and its results are written already.
            os.write(
                2,
                f"{self.stack}testbed: "
                "the event loop stands still and cannot be interrupted; all ends at once\n".encode(),
            )
            os._exit(128 + self.caught[0] if self.caught else 2)
        self._answered = True  # the next alarm asks again
        self._ending = True
        self._postpone_kill()
        raise error


def _handle_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an exception as asyncio does, except that of an interrupted task: nothing is left that could await it."""
    if not isinstance(context.get("exception"), Interrupted | StoodStill):
        loop.default_exception_handler(context)


def limit_s() -> float:
    """Return the CPU seconds for one turn of a loop.

    :raise UsageError: the variable is not such a number.
    """
    text = os.environ.get(LIMIT)
    if text is None:
        return _LIMIT_S
    if text.isascii() and text.isdecimal() and 1 <= len(text) <= 6 and (seconds := int(text)) > 0:
        return float(seconds)
    raise UsageError(f"{LIMIT}={text}: expected a whole number of seconds, 1 to 999999")
