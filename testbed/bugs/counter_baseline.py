"""Reads the counters of a guest's cgroups that a signature looks at, while a try runs and at its end."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.bugs.signature import SignatureMatcher, render
from testbed.errors import TestbedError
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings


class CounterBaseline:
    """The counters that one try's signature looks at, as they are read while it runs and at its end."""

    def __init__(self, matcher: SignatureMatcher) -> None:
        self._matcher = matcher
        self._last: dict[tuple[str, str], int] = {}
        self._unread: dict[tuple[str, str], str] = dict.fromkeys(matcher.counters, "nobody has looked at it")
        self._failed = ""

    @property
    def unknown(self) -> str:
        """What was not read when it was last looked at: then that the signature has not shown there means nothing. Else empty."""
        if self._failed:
            return f"its counters were not read at the end: {self._failed}"
        return "; ".join(
            f"{'/'.join(counter)}: {self._had(counter)}not read: {why}" for counter, why in self._unread.items()
        )

    def _had(self, counter: tuple[str, str]) -> str:
        return f"{self._last[counter]} at first, then " if counter in self._last else ""

    async def read(self, guest: Guest, *, everything: bool = False) -> tuple[str, ...]:
        """Read the counters that the signature names, or all there are, and show them to it. Returns all, a line each, for `everything`.

        What cannot be read is `unknown`, until it can.
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
