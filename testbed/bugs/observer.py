"""Feeds what a running try shows to its signature: console, script output, counters; and notes when the signature first
holds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from testbed.bugs.counter_baseline import CounterBaseline
from testbed.bugs.signature import SignatureMatcher
from testbed.guest.guest import Guest

_POLL_S = 1.0

# The file with what the scripts print, written as it comes, and its largest size.
OUTPUT, _MAX_OUTPUT_BYTES = "output.txt", 8 << 20


@dataclass(slots=True)
class Observer:
    """Listens to one try. `hit_at`: the monotonic time at which the signature held first; `hit` is set then."""

    matcher: SignatureMatcher
    hit_at: float | None = None
    hit: asyncio.Event = field(default_factory=asyncio.Event)
    _file: BinaryIO | None = None
    _counters: CounterBaseline = field(init=False)

    def __post_init__(self) -> None:
        self._counters = CounterBaseline(self.matcher)

    @contextlib.contextmanager
    def write_output_to(self, logs: Path) -> Iterator[None]:
        """Write what the script prints into a file of this folder as well."""
        with (logs / OUTPUT).open("wb", buffering=0) as self._file:
            yield

    def on_console(self, data: bytes) -> None:
        self.matcher.feed_console(data)
        self.check()

    def on_output(self, data: bytes) -> None:
        self._write(data)
        self.matcher.feed_output(data)
        self.check()

    def on_errors(self, data: bytes) -> None:
        self._write(data)
        self.matcher.feed_errors(data)
        self.check()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.write(data[: max(0, _MAX_OUTPUT_BYTES - self._file.tell())])

    def check(self) -> None:
        """Note the time of the hit, once there is one."""
        if self.matcher.hit is not None and self.hit_at is None:
            self.hit_at = time.monotonic()
            self.hit.set()

    @property
    def unread_counters(self) -> str:
        """Which counters of the signature could not be read last, and why; empty where all were."""
        return self._counters.unknown

    async def poll_counters(self, guest: Guest) -> None:
        """Read the signature's counters again and again, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_S)
            await self.read_counters(guest)

    async def read_counters(self, guest: Guest, *, everything: bool = False) -> None:
        """Read the counters that the signature names; with `everything` all of them, and write those into
        counters.txt."""
        lines = await self._counters.read(guest, everything=everything)
        if lines:
            (guest.logs / "counters.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.check()
