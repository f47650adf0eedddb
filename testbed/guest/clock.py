"""Compares a guest's clock, its uptime, which its kernel log shows, with `time.monotonic()` of this process."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from testbed.errors import GuestError
from testbed.guest.guest import Guest
from testbed.units import parse_whole

_ROUNDS = 5
# How much faster or slower than ours a guest's clock may run, in addition to the error of the measurement.
_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """`offset_s`: the guest's uptime when our clock is 0, give or take `error_s`."""

    offset_s: float
    error_s: float

    def uptime(self, monotonic_s: float) -> float:
        """Return the guest's uptime at a time of our clock."""
        return monotonic_s + self.offset_s


async def read_clock(guest: Guest) -> Clock:
    """Read the guest's clock a few times through its agent, and return the reading with the smallest error.

    Read it again after the guest was paused.

    :raise GuestError: the agent does not answer.
    """
    readings = []
    for _ in range(_ROUNDS):
        asked = time.monotonic()
        _, answer = await guest.wait(guest.agent.ask("time"), guest.deadlines.command_s)
        readings.append(clock_between(parse_uptime(answer), asked, time.monotonic()))
    return min(readings, key=lambda clock: clock.error_s)


async def runs_at_host_rate(guest: Guest, meanwhile: Callable[[], Awaitable[object]]) -> bool:
    """Return whether the guest's clock runs as fast as ours while `meanwhile` runs.

    A kernel that is interrupted while it calibrates its TSC may get a wrong frequency: 317 MHz instead of 2445 was
    seen, so that a second of the guest took 0.13 s.

    :raise GuestError: the agent does not answer.
    """
    before, began = await read_clock(guest), time.monotonic()
    await meanwhile()
    after, took_s = await read_clock(guest), time.monotonic() - began
    return abs(after.offset_s - before.offset_s) <= before.error_s + after.error_s + _SHARE * took_s


def clock_between(guest_s: float, asked: float, answered: float) -> Clock:
    """Return the clock for an uptime that was read between two times of our clock."""
    return Clock(offset_s=guest_s - (asked + answered) / 2, error_s=(answered - asked) / 2)


def parse_uptime(answer: str) -> float:
    """Return the `uptime_ns` of an agent's answer, in seconds.

    :raise GuestError: the answer has none. :raise ReadingError: it is no number.
    """
    for word in answer.split():
        name, _, value = word.partition("=")
        if name == "uptime_ns":
            return parse_whole(value, "agent: uptime_ns") / 1e9
    raise GuestError(f"agent: expected an answer with uptime_ns=N, got {answer!r}")
