"""Runs the work on guests: in the caller's event loop, or in an event loop of our own in a separate thread.

Tests use the second. A guest belongs to the event loop that started it, and a test suite has many loops: one for
each test, module or session. Ours lives for the whole session, runs while a debugger stops the test, and also serves
fixtures that are no coroutines. Child processes are killed when the thread that started them ends (`process.start`),
which is this one.
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
# For the end of interrupted work: guests end in less. An event loop that is blocked ends with the process.
_GRACE_S = 60.0


class LoopRunner(Protocol):
    """Runs coroutines in some event loop."""

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` and return its result; cancelled with the caller."""


class CallerLoop:
    """Runs coroutines in the caller's own event loop."""

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except TestbedError as error:
            raise without_traceback(error) from None


def without_traceback(error: TestbedError) -> TestbedError:
    """Return the error without its internal traceback, unless `TESTBED_DEBUG` is set."""
    if os.environ.get("TESTBED_DEBUG"):
        return error
    error.__cause__ = None
    return error.with_traceback(None)


class ThreadLoop:
    """Runs coroutines in an event loop in its own thread, until `close`."""

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
        """Run `work` while the caller's thread is blocked; an interrupt of the caller cancels it."""
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
        """Cancel all work that still runs, and end the thread."""
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
