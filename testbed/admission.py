"""Who may start guests now, among all processes of this user that ask: a ticket for each set of guests, in the order of asking.

RUNTIME/admission/gate        held while somebody looks at the tickets
                  NUMBER-PID  a ticket, locked by its owner; when that is gone, however it ended, the lock is free and the ticket a leftover
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from testbed.errors import HostError
from testbed.progress import Progress
from testbed.units import format_size

_POLL_S = 0.05
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """So many guests, that start and end together. `who`: what wants them, for messages. `memory_bytes`: of all of them."""

    guests: int
    memory_bytes: int
    who: str
    admitted: bool = False


def obstacle(wanted: Claim, held: Iterable[Claim], *, cores: int, memory_bytes: int, free_bytes: int) -> str | None:
    """What a claim must wait for: one guest a core, and no more than half of the memory, as in `testbed compare`; None where it need not.

    Whoever asks first starts at any rate, however much it wants.
    """
    there = tuple(held)
    if not there:
        return None
    running = sum(claim.guests for claim in there)
    who = ", ".join(claim.who for claim in there)
    if running + wanted.guests > cores:
        what = "a core" if wanted.guests == 1 else f"a core for each of its {wanted.guests} guests"
        return f"{what}: there are {cores}, and {running} {'is' if running == 1 else 'are'} taken by {who}"
    promised = sum(claim.memory_bytes for claim in there)
    if promised + wanted.memory_bytes > memory_bytes // 2 or wanted.memory_bytes > free_bytes // 2:
        return f"{format_size(wanted.memory_bytes)} of memory: {format_size(promised)} are of {who}, {format_size(free_bytes)} are free"
    return None


def free_memory() -> int:
    """Bytes that could be had now."""
    found = _AVAILABLE.search(Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


class Admission:
    """The queue in one folder."""

    def __init__(self, runtime: Path, *, cores: int, memory_bytes: int) -> None:
        self._folder = runtime / "admission"
        self._cores, self._memory_bytes = cores, memory_bytes

    @contextlib.asynccontextmanager
    async def admitted(self, claim: Claim, progress: Progress, *, at_once: bool = False) -> AsyncIterator[None]:
        """Wait until there is room, and hold it. `at_once`: for whom has guests already; two of these would wait for each other.

        :raise HostError: the tickets cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            async with self._gate():
                ticket = _Ticket(self._folder / f"{time.monotonic_ns():020}-{os.getpid()}-{next(_numbers)}", claim)
        except OSError as error:
            raise HostError(f"{error.filename or self._folder}: cannot be written: {error.strerror}") from error
        try:
            said = ""
            while (why := await self._ask(ticket, at_once)) is not None:
                if why != said:
                    progress.note(f"{claim.who}: waiting for {why}")
                    said = why
                await asyncio.sleep(_POLL_S)
            yield
        finally:
            ticket.close()

    async def _ask(self, ticket: _Ticket, at_once: bool) -> str | None:
        async with self._gate():
            before, held = [], []
            for path, claim in self._tickets():
                if claim.admitted:
                    held.append(claim)
                elif path.name < ticket.path.name:
                    before.append(claim)
            if at_once:
                why = None
            elif before:
                why = f"its turn, after {before[0].who}"
            else:
                free_bytes = free_memory()
                why = obstacle(ticket.claim, held, cores=self._cores, memory_bytes=self._memory_bytes, free_bytes=free_bytes)
            if why is None:
                ticket.write(replace(ticket.claim, admitted=True))
            return why

    def _tickets(self) -> Iterator[tuple[Path, Claim]]:
        """Those whose owners live, by age; the others are removed."""
        for path in sorted(self._folder.glob("*-*-*")):
            with contextlib.suppress(OSError, ValueError, TypeError), path.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield path, Claim(**json.loads(file.read()))
                    continue
                path.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def _gate(self) -> AsyncIterator[None]:
        with (self._folder / "gate").open("a") as gate:
            while True:
                try:
                    fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_POLL_S / 10)
            yield


class _Ticket:
    """Made while the gate is held, so that nobody sees it unlocked."""

    def __init__(self, path: Path, claim: Claim) -> None:
        self.path, self.claim = path, claim
        self._file = path.open("w+")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.write(claim)

    def write(self, claim: Claim) -> None:
        self.claim = claim
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(asdict(claim)))
        self._file.flush()

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()
