"""Who may start guests now, among all processes of this user that ask: a ticket for each set of guests. Processes take turns, so that a
short command is not kept waiting by all that a long one still has to do.

ADMISSION/gate        held while somebody looks at the tickets
          NUMBER-PID  a ticket, locked by its owner; when that is gone, however it ended, the lock is free and the ticket a leftover
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from testbed.errors import HostError
from testbed.host import other_users, paths, resources
from testbed.host.facts import Host
from testbed.text import parse_json
from testbed.units import MIB, format_size

_POLL_S = 0.05
# Whoever is far behind looks less often.
_SLOWEST_POLL_S = 1.0
# What a guest needs beyond its own memory: translated code, and QEMU itself. About 100 MiB have been seen.
_OVERHEAD_BYTES = 128 * MIB
_LONG_NS = 60_000_000_000
# How often the gate is asked for until its holder is named: about two seconds.
_LONG_ASKED = 400
# At most this many guests that mostly wait are started at once, if there is memory for them.
_MOST_IDLE = 24
_numbers = itertools.count()

# Hears what is waited for, each time that it is something else.
OnWait = Callable[[str], None]


class Cores(enum.Enum):
    """What one guest takes of the host's processors: SHARED counts as one core, IDLE mostly waits, ALONE measures time, so that no other
    guest may run beside it."""

    SHARED = "shared"
    IDLE = "idle"
    ALONE = "alone"

    def count(self, host: Host) -> int:
        """How many of the host's cores the guest claims."""
        return {Cores.SHARED: 1, Cores.IDLE: 0, Cores.ALONE: host.cores}[self]


def most_at_once(cores: Cores, host: Host, memory_bytes: int) -> int:
    """How many guests of one kind, each with `memory_bytes`, a command starts at once: one per core, and no more than half of the free
    memory holds. The others do not ask for admission yet, so that the queue stays short. Pure.

    Half, because what a guest needs beyond its own memory (translated code, QEMU itself) is about 100 MiB, and other people use the host.
    """
    most = {Cores.SHARED: host.cores, Cores.IDLE: _MOST_IDLE, Cores.ALONE: 1}[cores]
    return max(1, min(most, host.memory_free_bytes // 2 // memory_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Guests that start and end together. `who`: what wants them, for messages. `cores`: how many of this machine's they keep busy; 0 for
    guests that mostly wait. `memory_bytes`: what all of them have; `guests`: how many they are.
    """

    cores: int
    memory_bytes: int
    who: str
    guests: int = 1
    admitted: bool = False

    @property
    def need_bytes(self) -> int:
        """What they may take of this machine's memory: their own, and what QEMU needs for each."""
        return self.memory_bytes + self.guests * _OVERHEAD_BYTES


def obstacle(
    wanted: Claim, held: Iterable[Claim], *, cores: int, memory_bytes: int, free_bytes: int, resident_bytes: int = 0
) -> str | None:
    """What a claim must wait for: no more than a busy guest a core, no more than half of the memory, because other people use the host, and
    no more than is free and not promised; None where it need not.

    Guests that were admitted touch their memory late, a clone only what it writes: what is free is theirs as far as they do not have it
    yet. `resident_bytes`: what they have. Whoever asks first starts with as many guests as it wants. Pure.
    """
    there = tuple(held)
    if not there:
        return None
    busy = [claim for claim in there if claim.cores]
    taken = sum(claim.cores for claim in busy)
    if busy and wanted.cores and taken + wanted.cores > cores:
        what = "a core" if wanted.cores == 1 else f"{wanted.cores} cores"
        return f"{what}: there are {cores}, and {taken} {'is' if taken == 1 else 'are'} taken by {_names(busy)}"
    promised = sum(claim.memory_bytes for claim in there)
    later = memory_promised(there, resident_bytes)
    if promised + wanted.memory_bytes > memory_bytes // 2 or later + wanted.need_bytes > free_bytes:
        said = f"{format_size(wanted.memory_bytes)} of memory: {format_size(promised)} are of {_names(there)}"
        return f"{said}, {format_size(free_bytes)} are free, {format_size(later)} of that promised"
    return None


def memory_promised(held: Iterable[Claim], resident_bytes: int) -> int:
    """Bytes that were promised to guests, which have so many of them by now. Pure."""
    return max(0, sum(claim.need_bytes for claim in held) - resident_bytes)


def _names(claims: Iterable[Claim]) -> str:
    return ", ".join(claim.who for claim in claims)


def turn_order(waiting: Iterable[str], busy: Iterable[str], *, now_ns: int) -> list[str]:
    """Tickets by when they come: as many as their process has that are busy, or came earlier, and then by age; but by age alone whoever has
    waited long, so that no stream of newcomers keeps it out. Names of both, which begin with when they were made. Pure.
    """
    rounds = Counter(_owner(name) for name in busy)
    turns = []
    for name in sorted(waiting):
        old = now_ns - int(name.split("-")[0]) > _LONG_NS
        turns.append((0 if old else 1 + rounds[_owner(name)], name))
        rounds[_owner(name)] += 1
    return [name for _, name in sorted(turns)]


def _is_ticket(name: str) -> bool:
    parts = name.split("-")
    return len(parts) == 3 and all(part.isascii() and part.isdecimal() and len(part) <= 20 for part in parts)


def _owner(ticket: str) -> int:
    return int(ticket.split("-")[1])


def refusal(wanted: Claim, held: Iterable[Claim], *, free_bytes: int) -> str | None:
    """Why a claim is in vain: nobody whose end could be waited for (`held`) has the memory that it lacks. None where it is not."""
    if any(held) or wanted.need_bytes <= free_bytes:
        return None
    lacking, free = format_size(wanted.need_bytes), format_size(free_bytes)
    return f"{wanted.who}: expected {lacking} of free memory, got {free}; end other programs, or give its guests less memory"


def resident_memory(owner: int) -> int:
    """Bytes of memory that the QEMUs of a process have, and that nobody else could have: no pages of files, which come from a template."""
    found = 0
    for children in Path(f"/proc/{owner}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ends just now
            for child in children.read_text(encoding="utf-8").split():
                with contextlib.suppress(OSError, ValueError):
                    status = dict(
                        line.split(":", 1)
                        for line in Path(f"/proc/{child}/status").read_text(encoding="utf-8").splitlines()
                    )
                    # Another name, as of a user's wrapper, counts as nothing: its guests are then taken for ones that have nothing yet.
                    if status["Name"].strip().startswith("qemu-system"):
                        found += sum(
                            int(status[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssShmem") if kind in status
                        )
    return found


def _resident(held: Iterable[tuple[Path, Claim]]) -> int:
    """Of what was promised, what the guests have. No owner's count for more than was promised to it, whatever else it has started."""
    promised = Counter[int]()
    for path, claim in held:
        promised[_owner(path.name)] += claim.need_bytes
    return sum(min(need_bytes, resident_memory(owner)) for owner, need_bytes in promised.items())


def _tickets(folder: Path) -> Iterator[tuple[Path, Claim]]:
    """Those whose owners live, by age; the others are removed. For whoever holds the gate."""
    for path in sorted(folder.glob("*-*-*")):
        if not _is_ticket(path.name):
            continue  # of whatever else lies in a folder that the user named
        with contextlib.suppress(OSError, ValueError, TypeError), path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path, Claim(**parse_json(file.read()))
                continue
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the tickets of processes that are gone, unless somebody looks at them just now, who removes them as well."""
    if not folder.is_dir():
        return
    with contextlib.suppress(OSError), (folder / "gate").open("a", encoding="utf-8") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for _ in _tickets(folder):
            pass


class Admission:
    """The queue in one folder."""

    def __init__(self, folder: Path, *, cores: int, memory_bytes: int) -> None:
        self._folder = folder
        self._cores, self._memory_bytes = cores, memory_bytes

    @contextlib.asynccontextmanager
    async def admitted(self, claim: Claim, on_wait: OnWait, *, at_once: bool = False) -> AsyncIterator[Admitted]:
        """Wait until there is room, and hold it. `at_once`: for whom has guests already; two of these would wait for each other.

        :raise HostError: there is no memory for it, and nobody of ours who could give it back; or the tickets cannot be written.
        """
        try:
            paths.make_folder(self._folder)
            async with self._gate(on_wait):
                ticket = Admitted(self._folder / f"{time.monotonic_ns():020}-{os.getpid()}-{next(_numbers)}", claim)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            said = ""
            while (turn := await self._ask_somehow(ticket, on_wait, at_once)) is not None:
                place, why = turn
                if why != said:
                    on_wait(f"waiting for {why}")
                    said = why
                await asyncio.sleep(min(_SLOWEST_POLL_S, _POLL_S * (1 + place)))
            yield ticket
        finally:
            ticket.close()

    async def _ask_somehow(self, ticket: Admitted, on_wait: OnWait, at_once: bool) -> tuple[int, str] | None:
        try:
            return await self._ask(ticket, on_wait, at_once)
        except OSError as error:  # the folder went away, as a runtime folder does when its user leaves
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> HostError:
        return HostError(f"{error.filename or self._folder}: cannot be written: {error.strerror}")

    async def _ask(self, ticket: Admitted, on_wait: OnWait, at_once: bool) -> tuple[int, str] | None:
        """How many are before it, and what it must wait for."""
        async with self._gate(on_wait):
            tickets = list(_tickets(self._folder))
            admitted = [(path, claim) for path, claim in tickets if claim.admitted]
            waiting = {path.name: claim for path, claim in tickets if not claim.admitted} | {
                ticket.path.name: ticket.claim
            }
            turns = turn_order(
                waiting, (path.name for path, claim in admitted if claim.cores), now_ns=time.monotonic_ns()
            )
            place = turns.index(ticket.path.name)
            wanted, held, free_bytes = ticket.claim, [claim for _, claim in admitted], resources.free_bytes()
            if place and not at_once:
                return place, f"its turn, after {waiting[turns[place - 1]].who}"
            resident_bytes = _resident(admitted)
            # Who does not wait gets none that others have, or were promised.
            spare_bytes = free_bytes - memory_promised(held, resident_bytes) if at_once else free_bytes
            if refused := refusal(wanted, () if at_once else held, free_bytes=spare_bytes):
                raise HostError(refused)
            why = obstacle(
                wanted,
                held,
                cores=self._cores,
                memory_bytes=self._memory_bytes,
                free_bytes=free_bytes,
                resident_bytes=resident_bytes,
            )
            if why is not None and not at_once:
                return 0, why
            ticket.write(replace(wanted, admitted=True))
            return None

    @contextlib.asynccontextmanager
    async def _gate(self, on_wait: OnWait) -> AsyncIterator[None]:
        path = self._folder / "gate"
        with _opened(path) as gate:
            asked = 0
            while True:
                try:
                    fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_POLL_S / 10)
                asked += 1
                # It is held for milliseconds, unless a signal has stopped its holder.
                if asked == _LONG_ASKED:
                    on_wait(f"waiting for {other_users.lock_holder(path)}, which holds {path}")
            yield


def _opened(path: Path) -> TextIO:
    """A file that nobody else opens: whoever can may lock it, and a locked ticket counts."""
    return os.fdopen(
        os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+", encoding="utf-8"
    )


class Admitted:
    """A ticket. Made while the gate is held, so that nobody sees it unlocked."""

    def __init__(self, path: Path, claim: Claim) -> None:
        self.path, self.claim = path, claim
        self._file = _opened(path)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.write(claim)

    def write(self, claim: Claim) -> None:
        self.claim = claim
        # At once, since it is read while it is changed.
        os.pwrite(self._file.fileno(), json.dumps(asdict(claim)).ljust(self._size()).encode(), 0)

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def rest(self) -> None:
        """From now on its guests mostly wait, and the cores are for others."""
        self.write(replace(self.claim, cores=0))

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()
