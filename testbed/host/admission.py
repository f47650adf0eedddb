"""Decides when guests may start, among all processes of this user: each set of guests takes a ticket.

Processes take turns, so that a short command does not wait for everything that a long one still has to do.

ADMISSION/gate        locked while a process reads the tickets
          NUMBER-PID  a ticket, locked by its owner; when the owner ends, the kernel unlocks it: a leftover
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
# Tickets further back in the queue poll less often.
_SLOWEST_POLL_S = 1.0
# What a guest needs beyond its own memory, for translated code and QEMU itself. About 100 MiB have been seen.
_OVERHEAD_BYTES = 128 * MIB
_LONG_WAIT_NS = 60_000_000_000
# How often the gate is tried before its holder is named: about two seconds.
_TRIES_BEFORE_NAMING = 400
# At most this many guests that mostly wait are started at once, if there is memory for them.
_MOST_IDLE = 24
_numbers = itertools.count()

# Called with what is waited for, each time that this changes.
OnWait = Callable[[str], None]


class Cores(enum.Enum):
    """What one guest takes of the host's processors: SHARED counts as one core, IDLE mostly waits, ALONE measures time,
    so that no other guest may run beside it.
    """

    SHARED = "shared"
    IDLE = "idle"
    ALONE = "alone"

    def count(self, host: Host) -> int:
        """How many of the host's cores the guest claims."""
        return {Cores.SHARED: 1, Cores.IDLE: 0, Cores.ALONE: host.cores}[self]


def most_at_once(cores: Cores, host: Host, memory_bytes: int) -> int:
    """How many guests of one kind, each with `memory_bytes`, a command starts at once: one per core, and no more than
    half of the free memory holds. The others do not ask for admission yet, so that the queue stays short. Pure.

    Half, because what a guest needs beyond its own memory (translated code, QEMU itself) is about 100 MiB, and other
    people use the host.
    """
    most = {Cores.SHARED: host.cores, Cores.IDLE: _MOST_IDLE, Cores.ALONE: 1}[cores]
    return max(1, min(most, host.memory_free_bytes // 2 // memory_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Guests that start and end together.

    `who`: the command that claims them, for messages. `cores`: how many cores they keep busy; 0 for guests that mostly
    wait. `memory_bytes`: the memory of all of them; `guests`: their number.
    """

    cores: int
    memory_bytes: int
    who: str
    guests: int = 1
    admitted: bool = False

    @property
    def need_bytes(self) -> int:
        """The memory of this machine that they may take: their own, and QEMU's for each."""
        return self.memory_bytes + self.guests * _OVERHEAD_BYTES


def obstacle(
    new: Claim, others: Iterable[Claim], *, cores: int, memory_bytes: int, free_bytes: int, resident_bytes: int = 0
) -> str | None:
    """Return what blocks a claim, or None. Pure.

    At most one busy guest per core, half of the memory, because other people use the host, and the memory that is free
    and not promised. Admitted guests touch their memory late, and a clone only what it writes, so the memory that they
    do not have yet (`resident_bytes`: what they have) is reserved for them. The first claim starts with as many guests
    as it asks for.
    """
    admitted = tuple(others)
    if not admitted:
        return None
    busy = [claim for claim in admitted if claim.cores]
    busy_cores = sum(claim.cores for claim in busy)
    if busy and new.cores and busy_cores + new.cores > cores:
        what = "a core" if new.cores == 1 else f"{new.cores} cores"
        return (
            f"{what}: there are {cores}, and {busy_cores} {'is' if busy_cores == 1 else 'are'} taken by {_names(busy)}"
        )
    promised_memory_bytes = sum(claim.memory_bytes for claim in admitted)
    missing_bytes = memory_promised(admitted, resident_bytes)
    if promised_memory_bytes + new.memory_bytes > memory_bytes // 2 or missing_bytes + new.need_bytes > free_bytes:
        text = (
            f"{format_size(new.memory_bytes)} of memory: {format_size(promised_memory_bytes)} are of {_names(admitted)}"
        )
        return f"{text}, {format_size(free_bytes)} are free, {format_size(missing_bytes)} of that promised"
    return None


def memory_promised(others: Iterable[Claim], resident_bytes: int) -> int:
    """Return the bytes that were promised to guests and that they do not have yet. Pure."""
    return max(0, sum(claim.need_bytes for claim in others) - resident_bytes)


def _names(claims: Iterable[Claim]) -> str:
    return ", ".join(claim.who for claim in claims)


def turn_order(waiting: Iterable[str], busy: Iterable[str], *, now_ns: int) -> list[str]:
    """Sort waiting tickets by their turn. Pure.

    A ticket's turn is the number of tickets that its process has running, or that its process took earlier; tickets of
    the same turn are sorted by age. A ticket that has waited long comes before all others, so that no stream of new
    ones keeps it out. Names of tickets begin with the time at which they were taken.
    """
    rounds = Counter(_owner(name) for name in busy)
    turns = []
    for name in sorted(waiting):
        old = now_ns - int(name.split("-")[0]) > _LONG_WAIT_NS
        turns.append((0 if old else 1 + rounds[_owner(name)], name))
        rounds[_owner(name)] += 1
    return [name for _, name in sorted(turns)]


def _is_ticket(name: str) -> bool:
    parts = name.split("-")
    return len(parts) == 3 and all(part.isascii() and part.isdecimal() and len(part) <= 20 for part in parts)


def _owner(ticket: str) -> int:
    return int(ticket.split("-")[1])


def refusal(new: Claim, others: Iterable[Claim], *, free_bytes: int) -> str | None:
    """Return why a claim can never be met: it lacks memory, and no guest holds any whose end could be waited for.

    None if it may be met.
    """
    if any(others) or new.need_bytes <= free_bytes:
        return None
    lacking, free = format_size(new.need_bytes), format_size(free_bytes)
    return (
        f"{new.who}: expected {lacking} of free memory, got {free}; end other programs, or give its guests less memory"
    )


def resident_memory(owner: int) -> int:
    """Return the bytes of memory that only the QEMUs of a process use; pages of files, which come from a template, do
    not count.
    """
    total_bytes = 0
    for children in Path(f"/proc/{owner}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the process is ending
            for child in children.read_text(encoding="utf-8").split():
                with contextlib.suppress(OSError, ValueError):
                    status = dict(
                        line.split(":", 1)
                        for line in Path(f"/proc/{child}/status").read_text(encoding="utf-8").splitlines()
                    )
                    # A program of another name, such as a user's wrapper, does not count: its guests seem to have no
                    # memory yet.
                    if status["Name"].strip().startswith("qemu-system"):
                        total_bytes += sum(
                            int(status[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssShmem") if kind in status
                        )
    return total_bytes


def _resident(others: Iterable[tuple[Path, Claim]]) -> int:
    """Return how much of the promised memory the guests have.

    An owner's count is limited to what was promised to it, whatever else it has started.
    """
    promised_memory_bytes = Counter[int]()
    for path, claim in others:
        promised_memory_bytes[_owner(path.name)] += claim.need_bytes
    return sum(min(need_bytes, resident_memory(owner)) for owner, need_bytes in promised_memory_bytes.items())


def _tickets(folder: Path) -> Iterator[tuple[Path, Claim]]:
    """Yield the tickets whose owners live, by age, and remove the others. The caller must hold the gate."""
    for path in sorted(folder.glob("*-*-*")):
        if not _is_ticket(path.name):
            continue  # another file, in a folder that the user chose
        with contextlib.suppress(OSError, ValueError, TypeError), path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path, Claim(**parse_json(file.read()))
                continue
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the tickets of processes that are gone, unless another process holds the gate and removes them itself."""
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
        """Wait until the claim can be met, and hold it.

        `at_once`: do not queue, for a process that has guests already; two of these would wait for each other.

        :raise HostError: there is not enough memory, and no guest of ours that could free some; or the tickets cannot
            be written.
        """
        try:
            paths.make_folder(self._folder)
            async with self._gate(on_wait):
                ticket = Admitted(self._folder / f"{time.monotonic_ns():020}-{os.getpid()}-{next(_numbers)}", claim)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            reported = ""
            while (turn := await self._ask_or_fail(ticket, on_wait, at_once)) is not None:
                place, why = turn
                if why != reported:
                    on_wait(f"waiting for {why}")
                    reported = why
                await asyncio.sleep(min(_SLOWEST_POLL_S, _POLL_S * (1 + place)))
            yield ticket
        finally:
            ticket.close()

    async def _ask_or_fail(self, ticket: Admitted, on_wait: OnWait, at_once: bool) -> tuple[int, str] | None:
        try:
            return await self._ask(ticket, on_wait, at_once)
        except OSError as error:  # the folder was removed, as a runtime folder is when its user logs out
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> HostError:
        return HostError(f"{error.filename or self._folder}: cannot be written: {error.strerror}")

    async def _ask(self, ticket: Admitted, on_wait: OnWait, at_once: bool) -> tuple[int, str] | None:
        """Return the number of tickets before this one, and what it must wait for; None once it is admitted."""
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
            new, others, free_bytes = ticket.claim, [claim for _, claim in admitted], resources.free_bytes()
            if place and not at_once:
                return place, f"its turn, after {waiting[turns[place - 1]].who}"
            resident_bytes = _resident(admitted)
            # A claim that does not queue must not take memory that other guests have, or were promised.
            spare_bytes = free_bytes - memory_promised(others, resident_bytes) if at_once else free_bytes
            if refused := refusal(new, () if at_once else others, free_bytes=spare_bytes):
                raise HostError(refused)
            why = obstacle(
                new,
                others,
                cores=self._cores,
                memory_bytes=self._memory_bytes,
                free_bytes=free_bytes,
                resident_bytes=resident_bytes,
            )
            if why is not None and not at_once:
                return 0, why
            ticket.write(replace(new, admitted=True))
            return None

    @contextlib.asynccontextmanager
    async def _gate(self, on_wait: OnWait) -> AsyncIterator[None]:
        path = self._folder / "gate"
        with _open_private(path) as gate:
            tries = 0
            while True:
                try:
                    fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_POLL_S / 10)
                tries += 1
                # The gate is held for milliseconds, unless a signal has stopped its holder.
                if tries == _TRIES_BEFORE_NAMING:
                    on_wait(f"waiting for {other_users.lock_holder(path)}, which holds {path}")
            yield


def _open_private(path: Path) -> TextIO:
    """Open a file that no other user can open: whoever can may lock it, and a locked ticket counts."""
    return os.fdopen(
        os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+", encoding="utf-8"
    )


class Admitted:
    """A ticket, made while the gate is held, so that no process sees it unlocked."""

    def __init__(self, path: Path, claim: Claim) -> None:
        self.path, self.claim = path, claim
        self._file = _open_private(path)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.write(claim)

    def write(self, claim: Claim) -> None:
        self.claim = claim
        # In one write, since other processes read it meanwhile.
        os.pwrite(self._file.fileno(), json.dumps(asdict(claim)).ljust(self._size()).encode(), 0)

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def release_cores(self) -> None:
        """Release the cores: the guests mostly wait from now on."""
        self.write(replace(self.claim, cores=0))

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()
