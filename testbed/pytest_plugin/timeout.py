"""Limits how long the body of a test may take, without its fixtures."""

from __future__ import annotations

import asyncio
import functools
import linecache
from typing import Any

import pytest

from testbed.api.pausable_clock import PausableClock
from testbed.pytest_plugin.session import STATE


def time_limit(item: pytest.Function, seconds: float) -> None:
    """Make a test fail if it takes longer; time in a debugger is not counted."""
    body, state = item.obj, item.config.stash[STATE]
    clock = state.clock = state.clock or PausableClock()

    @functools.wraps(body)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        task = asyncio.ensure_future(body(*args, **kwargs))
        where = "its beginning"

        async def watched() -> Any:
            nonlocal where
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                where = _at(task)
                raise

        try:
            return await clock.within(watched(), seconds)
        except TimeoutError:
            if task.done():
                raise
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        pytest.fail(
            f"testbed_timeout: expected an end within {seconds:g} s, got none; it was at {where}", pytrace=False
        )

    item.obj = limited


def _at(task: asyncio.Task[Any]) -> str:
    """Return the line of the test where it waits."""
    frames = task.get_stack(limit=1)
    if not frames:
        return "its end"
    file, line = frames[0].f_code.co_filename, frames[0].f_lineno
    return f"{file}:{line}: {linecache.getline(file, line).strip()}"
