"""Where a guest's clock is against ours: its uptime, on which its kernel log is, and `time.monotonic()` of this process."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from testbed.errors import GuestError
from testbed.guest.guest import Guest
from testbed.units import parse_whole

_ROUNDS = 5
# How much faster or slower a guest's clock may go than ours, beside what the measure itself leaves open.
_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """`offset_s`: the guest's uptime where ours is 0; `error_s`: it is at most so much more or less."""

    offset_s: float
    error_s: float

    def uptime(self, monotonic_s: float) -> float:
        """The guest's uptime at one of our times."""
        return monotonic_s + self.offset_s


async def read_clock(guest: Guest) -> Clock:
    """Ask the guest's agent a few times; the quickest answer says most. A guest that stood still meanwhile, or later, must be asked again.

    :raise GuestError: it does not answer.
    """
    found = []
    for _ in range(_ROUNDS):
        asked = time.monotonic()
        _, said = await guest.wait(guest.agent.ask("time"), guest.deadlines.command_s)
        found.append(clock_between(parse_uptime(said), asked, time.monotonic()))
    return min(found, key=lambda one: one.error_s)


async def runs_at_host_rate(guest: Guest, meanwhile: Callable[[], Awaitable[object]]) -> bool:
    """Whether the guest's seconds are ours, as seen over `meanwhile`.

    A kernel that is interrupted while it measures its TSC may find a frequency that is none: seen was 317 MHz of 2445, where a second
    lasted 0.13 s.

    :raise GuestError: it does not answer.
    """
    before, began = await read_clock(guest), time.monotonic()
    await meanwhile()
    after, took_s = await read_clock(guest), time.monotonic() - began
    return abs(after.offset_s - before.offset_s) <= before.error_s + after.error_s + _SHARE * took_s


def clock_between(guest_s: float, asked: float, answered: float) -> Clock:
    """What a guest's time says that was read between two of ours."""
    return Clock(offset_s=guest_s - (asked + answered) / 2, error_s=(answered - asked) / 2)


def parse_uptime(said: str) -> float:
    """The `uptime_ns` of an agent's answer, in seconds.

    :raise GuestError: there is none. :raise ReadingError: it is no number.
    """
    for word in said.split():
        name, _, value = word.partition("=")
        if name == "uptime_ns":
            return parse_whole(value, "agent: uptime_ns") / 1e9
    raise GuestError(f"agent: expected an answer with uptime_ns=N, got {said!r}")
