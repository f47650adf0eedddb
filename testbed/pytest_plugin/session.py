"""State of a pytest session: the open testbed, and the topologies and kernels that were read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from testbed.api import Testbed
    from testbed.api.event_loops import ThreadLoop
    from testbed.api.pausable_clock import PausableClock
    from testbed.store.kernels.table import KernelTable
    from testbed.topology import Topology

_NOTE_INTERVAL_S = 5.0


class FailedGuests(Protocol):
    """What the report of a failed test needs of its guests."""

    def failed(self, when: str) -> list[tuple[str, str]]:
        """Return titles and texts of report sections; `when` is pytest's phase."""


class _Task:
    def __init__(self, notes: PluginNotes, title: str) -> None:
        self._notes, self._title, self._noted_at = notes, title, time.monotonic()

    def update(self, *, fraction: float | None = None, detail: str = "") -> None:
        if time.monotonic() >= self._noted_at + _NOTE_INTERVAL_S:
            self._noted_at = time.monotonic()
            done = f" {fraction:.0%}" if fraction is not None else ""
            self._notes.note(f"{self._title}{done}{f': {detail}' if detail else ''}")


class PluginNotes:
    """A `Progress` that writes a line when a step begins, and every few seconds how far it is."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.note = write

    @contextmanager
    def task(self, title: str) -> Iterator[_Task]:
        """Write a line for one long step."""
        self.note(f"{title} ...")
        yield _Task(self, title)


class PluginState:
    """State of a session. `clock`, `background` and `testbed` are None until a test asks for a guest."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.clock: PausableClock | None = None
        self.background: ThreadLoop | None = None
        self.testbed: Testbed | None = None
        self._open: Any = None
        self._table: KernelTable | None = None
        # Points of topologies by what they were read from; what a kernel lacks of some requirements.
        self.points: dict[str, dict[str, Topology]] = {}
        self.lacking: dict[tuple[str, Any], str] = {}
        self.first_kernel = ""

    @property
    def table(self) -> KernelTable:
        """The kernel table that ships with the testbed."""
        if self._table is None:
            from testbed.store.kernels.table import shipped_table

            self._table = shipped_table()
        return self._table

    def open(self, artifacts: Path) -> Testbed:
        """Open the testbed.

        :raise TestbedError: this machine cannot run it.
        """
        from testbed.api import testbed
        from testbed.api.event_loops import ThreadLoop
        from testbed.api.pausable_clock import PausableClock

        self.clock = self.clock or PausableClock()
        self.background = background = ThreadLoop()
        kernels = (self.first_kernel,) if self.first_kernel else ()
        self._open = testbed.open_guests(
            background,
            self.clock,
            PluginNotes(self.write_line),
            artifacts,
            kernels=kernels,
            cold=self.config.getoption("testbed_cold"),
        )
        try:
            self.testbed = background.wait(self._open.__aenter__())
            self.testbed.keeps = self.config.getoption("testbed_keep")
        except BaseException:
            self._open = None
            self.close()
            raise
        return self.testbed

    def close(self) -> None:
        """Close the testbed and its thread, if they are open."""
        if self.background is None:
            return
        if self._open is not None:
            self.background.wait(self._open.__aexit__(None, None, None))
            self._open = None
        self.background.close()
        self.background = self.testbed = self.clock = None

    @property
    def worker(self) -> str:
        """Name of this worker of pytest-xdist, or empty."""
        return str(getattr(self.config, "workerinput", {}).get("workerid", ""))

    def write_line(self, text: str) -> None:
        """Write a line to the terminal at once, even while pytest captures output."""
        prefix = f"testbed [{self.worker}]" if self.worker else "testbed"
        capture = self.config.pluginmanager.getplugin("capturemanager")
        if capture is None:
            sys.stderr.write(f"{prefix}: {text}\n")
            return
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\n{prefix}: {text}\n")
            sys.stderr.flush()


STATE = pytest.StashKey[PluginState]()
GUESTS = pytest.StashKey[FailedGuests]()
