"""Writes samples into a file, a line of JSON each, while something else goes on; a guest that is lost keeps what was written until then."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from testbed.errors import HostError, ReadingError, TestbedError
from testbed.host.logfile import write_error

Sample = Callable[[], Awaitable[dict[str, Any]]]
# How long the last sample may take, which is asked for when what went on is over.
_LAST_S = 5.0


@contextlib.asynccontextmanager
async def record_samples(sample: Sample, every_s: float, file: Path, *, most_share: float = 1.0) -> AsyncIterator[None]:
    """A sample at once, then so often, and a last one at the end, unless that came by an error.

    `most_share`: of the time that may pass in waiting for samples; where they take longer, they are taken less often.
    """
    over = asyncio.Event()
    task = asyncio.create_task(_write(sample, every_s, most_share, file, over))
    try:
        yield
        over.set()
        await asyncio.wait({task}, timeout=_LAST_S)
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(ended, Exception):
        raise _said(ended, file)


def _said(failure: Exception, file: Path) -> Exception:
    return HostError(write_error(file, failure)) if isinstance(failure, OSError) else failure


async def _write(sample: Sample, every_s: float, most_share: float, file: Path, over: asyncio.Event) -> None:
    due = time.monotonic()
    # An answer may be late because the guest is busy; the quickest of the last ones says what one costs.
    took: deque[float] = deque(maxlen=4)
    with file.open("a", encoding="utf-8") as log:
        while True:
            last, began = over.is_set(), time.monotonic()
            try:
                log.write(json.dumps(await sample()) + "\n")
            except ReadingError:
                raise
            except TestbedError:
                return  # a guest that is lost says why elsewhere
            log.flush()
            if last:
                return
            now = time.monotonic()
            took.append(now - began)
            due = next_due(due, now, min(took), every_s, most_share)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), due - now)


def next_due(due: float, ended: float, cost_s: float, every_s: float, most_share: float) -> float:
    """When the next sample is taken after one that was due and ended then, where one costs so much; none is made up for."""
    return max(due + every_s, ended - cost_s + cost_s / most_share)


@contextlib.asynccontextmanager
async def record_samples_in_thread(
    read: Callable[[], dict[str, Any]], interrupt: Callable[[], None], every_s: float, file: Path
) -> AsyncIterator[None]:
    """The same by a thread, in which `read` may wait: that takes half the processor time. `interrupt` ends a wait of `read` that lasts."""
    writer = _Writer(read, every_s, file)
    writer.start()
    try:
        yield
        writer.last = True
    finally:
        writer.over.set()
        await asyncio.to_thread(writer.join, _LAST_S)
        if writer.is_alive():
            interrupt()
            await asyncio.to_thread(writer.join)
    if writer.failure is not None:
        raise _said(writer.failure, file)


class _Writer(threading.Thread):
    """Writes until it is `over`, and then one sample more where that is the `last` one, or until the guest is lost."""

    def __init__(self, read: Callable[[], dict[str, Any]], every_s: float, file: Path) -> None:
        super().__init__(name="samples", daemon=True)
        self._read, self._every_s, self._file = read, every_s, file
        self.over, self.last = threading.Event(), False
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with (
                self._file.open("a", encoding="utf-8") as log,
                contextlib.suppress(TestbedError),
            ):  # a guest that is lost says why elsewhere
                due = now = time.monotonic()
                while not self.over.wait(due - now) or self.last:
                    log.write(json.dumps(self._read()) + "\n")
                    log.flush()
                    if self.over.is_set():
                        return
                    now = time.monotonic()
                    due = max(due + self._every_s, now)
        except Exception as error:  # it is raised by whoever waits for this thread
            self.failure = error
