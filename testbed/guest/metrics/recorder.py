"""Writes samples into a file, a line of JSON each, while a block runs; if the guest is lost, the samples until then
stay.
"""

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
# How long the last sample, at the end of the block, may take.
_LAST_S = 5.0


@contextlib.asynccontextmanager
async def record_samples(sample: Sample, every_s: float, file: Path, *, most_share: float = 1.0) -> AsyncIterator[None]:
    """Write a sample at once, then every `every_s`, and one at the end unless the block raises.

    `most_share`: the share of time that samples may take; if they take longer, they are taken less often.
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
        raise _as_host_error(ended, file)


def _as_host_error(failure: Exception, file: Path) -> Exception:
    """Translate an error of the file."""
    return HostError(write_error(file, failure)) if isinstance(failure, OSError) else failure


async def _write(sample: Sample, every_s: float, most_share: float, file: Path, over: asyncio.Event) -> None:
    due = time.monotonic()
    # The fastest of the last samples tells what one costs: others are late because the guest is busy.
    took: deque[float] = deque(maxlen=4)
    with file.open("a", encoding="utf-8") as log:
        while True:
            last, began = over.is_set(), time.monotonic()
            try:
                log.write(json.dumps(await sample()) + "\n")
            except ReadingError:
                raise
            except TestbedError:
                return  # the guest is lost; its own error reports why
            log.flush()
            if last:
                return
            now = time.monotonic()
            took.append(now - began)
            due = next_due(due, now, min(took), every_s, most_share)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), due - now)


def next_due(due: float, ended: float, cost_s: float, every_s: float, most_share: float) -> float:
    """Return when the next sample is due, after one that was due and ended at these times and cost so much; skips
    missed ones.
    """
    return max(due + every_s, ended - cost_s + cost_s / most_share)


@contextlib.asynccontextmanager
async def record_samples_in_thread(
    read: Callable[[], dict[str, Any]], interrupt: Callable[[], None], every_s: float, file: Path
) -> AsyncIterator[None]:
    """Do the same in a thread, where `read` may block, which takes half the CPU time.

    `interrupt` ends a `read` that blocks too long.
    """
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
        raise _as_host_error(writer.failure, file)


class _Writer(threading.Thread):
    """Writes samples until `over` is set, then one more if `last` is set; or until the guest is lost."""

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
            ):  # the guest is lost; its own error reports why
                due = now = time.monotonic()
                while not self.over.wait(due - now) or self.last:
                    log.write(json.dumps(self._read()) + "\n")
                    log.flush()
                    if self.over.is_set():
                        return
                    now = time.monotonic()
                    due = max(due + self._every_s, now)
        except Exception as error:  # raised by `record_samples_in_thread`
            self.failure = error
