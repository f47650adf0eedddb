"""Deadlines whose clock stands still while a debugger holds the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

__tracebackhide__ = True  # pytest shows no frames of this module

T = TypeVar("T")


class PausableClock:
    """The clock. `hold` and `release` may come from another thread."""

    def __init__(self) -> None:
        self._stood_s = 0.0
        self._since: float | None = None

    def hold(self) -> None:
        """Let the clock stand still."""
        if self._since is None:
            self._since = time.monotonic()

    def release(self) -> None:
        """Let it go on from where it stood."""
        if self._since is not None:
            self._stood_s += time.monotonic() - self._since
            self._since = None

    def now(self) -> float:
        """Seconds on this clock."""
        return (time.monotonic() if self._since is None else self._since) - self._stood_s

    async def within(self, awaited: Awaitable[T], limit_s: float) -> T:
        """The result of `awaited`, cancelled when it takes longer.

        :raise TimeoutError: it did.
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
