"""Where the work on guests is done: in the caller's event loop, or in one of our own in a thread of its own.

The second is what tests have. A guest belongs to the event loop that started it, and a test suite has many: one for each test, module or
session, as its author likes. Ours lasts for the whole session, goes on while a debugger holds the test, and is there for fixtures that are
no coroutines. Programs die with the thread that started them (`process.start`), which is this one.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from testbed.errors import TestbedError

__tracebackhide__ = True  # pytest shows no frames of this module

T = TypeVar("T")
# For what was interrupted: guests are taken down in less. A loop that does not turn ends with the process.
_GRACE_S = 60.0


class LoopRunner(Protocol):
    """Does what it is given, and hands back what that returns or raises."""

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, while the caller waits; cancelled with it."""


class CallerLoop:
    """In the caller's own event loop."""

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except TestbedError as error:
            raise without_traceback(error) from None


def without_traceback(error: TestbedError) -> TestbedError:
    """An error without the way that it took through the testbed, which tells nobody anything; `TESTBED_DEBUG` leaves it."""
    if os.environ.get("TESTBED_DEBUG"):
        return error
    error.__cause__ = None
    return error.with_traceback(None)


class ThreadLoop:
    """In a thread that is started now, and ends with `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="testbed", daemon=True)
        self._thread.start()

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        except TestbedError as error:
            raise without_traceback(error) from None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, and block the caller's thread until it is done; whatever interrupts the caller cancels it."""
        done = threading.Event()

        async def whole() -> T:
            try:
                return await work
            finally:
                done.set()

        future = asyncio.run_coroutine_threadsafe(whole(), self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                done.wait(_GRACE_S)
            raise

    def close(self) -> None:
        """End the thread; what is still going on is cancelled first."""
        self.wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GRACE_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()
