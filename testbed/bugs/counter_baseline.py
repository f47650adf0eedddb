"""Reads the cgroup counters that a signature names, while a try runs and at its end."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.bugs.signature import SignatureMatcher, render
from testbed.errors import TestbedError
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings


class CounterBaseline:
    """Reads the counters of one try and feeds them to its signature."""

    def __init__(self, matcher: SignatureMatcher) -> None:
        self._matcher = matcher
        self._last: dict[tuple[str, str], int] = {}
        self._unread: dict[tuple[str, str], str] = dict.fromkeys(matcher.counters, "nobody has looked at it")
        self._failed = ""

    @property
    def unknown(self) -> str:
        """Which counters could not be read at the last reading, and why; then a miss proves nothing. Empty where all
        were read."""
        if self._failed:
            return f"its counters were not read at the end: {self._failed}"
        return "; ".join(
            f"{'/'.join(counter)}: {self._had(counter)}not read: {why}" for counter, why in self._unread.items()
        )

    def _had(self, counter: tuple[str, str]) -> str:
        return f"{self._last[counter]} at first, then " if counter in self._last else ""

    async def read(self, guest: Guest, *, everything: bool = False) -> tuple[str, ...]:
        """Read the counters that the signature names and feed them to it. `everything`: all counters of all cgroups,
        which are returned, one line each. A counter that cannot be read is `unknown` until it can.
        """
        texts: Mapping[str, str] = {}
        lines: tuple[str, ...] = ()
        try:
            texts = await readings.read_cgroup_counters(guest)
            if everything:
                lines = render(texts)
                self._matcher.feed_counters(lines)
        except TestbedError as error:
            self._failed = str(error) if everything and self._matcher.uses_counters else ""
        for cgroup, counter in self._matcher.counters:
            try:
                value = await readings.read_counter(guest, texts, cgroup, counter)
            except TestbedError as error:
                self._unread[cgroup, counter] = str(error)
                continue
            if value is None:
                self._unread[cgroup, counter] = "no such file; the cgroup must be there when the script ends"
                continue
            self._unread.pop((cgroup, counter), None)
            self._last[cgroup, counter] = value
            self._matcher.feed_counter(cgroup, counter, value)
        return lines
