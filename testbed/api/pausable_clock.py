"""Timeouts whose clock is paused while a debugger stops the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

__tracebackhide__ = True  # pytest shows no frames of this module

T = TypeVar("T")


class PausableClock:
    """A monotonic clock that can be paused. `hold` and `release` may be called from another thread."""

    def __init__(self) -> None:
        self._paused_s = 0.0
        self._paused_at: float | None = None

    def hold(self) -> None:
        """Pause the clock."""
        if self._paused_at is None:
            self._paused_at = time.monotonic()

    def release(self) -> None:
        """Resume the clock."""
        if self._paused_at is not None:
            self._paused_s += time.monotonic() - self._paused_at
            self._paused_at = None

    def now(self) -> float:
        """Seconds on this clock."""
        return (time.monotonic() if self._paused_at is None else self._paused_at) - self._paused_s

    async def within(self, awaited: Awaitable[T], limit_s: float) -> T:
        """Return the result of `awaited`; cancel it after `limit_s` seconds of this clock.

        :raise TimeoutError: it took longer.
        """
        task: asyncio.Future[T] = asyncio.ensure_future(awaited)
        until = self.now() + limit_s
        try:
            while not task.done() and (left := until - self.now()) > 0:
                only: set[asyncio.Future[Any]] = {task}
                await asyncio.wait(only, timeout=left)
            if not task.done():
                raise TimeoutError(f"expected an end within {limit_s:g} s, got none")
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
