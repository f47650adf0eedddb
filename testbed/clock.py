"""Where a guest's clock is against ours: its uptime, on which its kernel log is, and `time.monotonic()` of this process."""

from __future__ import annotations

import time
from dataclasses import dataclass

from testbed.guest import Guest

_ROUNDS = 5
# Of /proc/uptime.
_TICK_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """`offset_s`: the guest's uptime where ours is 0; `error_s`: it is at most so much more or less."""

    offset_s: float
    error_s: float

    def uptime(self, monotonic_s: float) -> float:
        """The guest's uptime at one of our times."""
        return monotonic_s + self.offset_s


async def read(guest: Guest) -> Clock:
    """Ask the guest a few times; the quickest answer says most. A guest that stood still meanwhile, or later, must be asked again.

    :raise GuestError: it does not answer.
    """
    found = []
    for _ in range(_ROUNDS):
        asked = time.monotonic()
        said = (await guest.script("read -r up rest </proc/uptime; echo $up")).stdout
        answered = time.monotonic()
        found.append(Clock(offset_s=float(said) + _TICK_S / 2 - (asked + answered) / 2, error_s=(answered - asked + _TICK_S) / 2))
    return min(found, key=lambda one: one.error_s)
