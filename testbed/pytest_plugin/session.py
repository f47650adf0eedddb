"""What lasts for a whole session of pytest: the testbed, once it was opened, and what was read of topologies and kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from testbed.api import Testbed
    from testbed.api.event_loops import ThreadLoop
    from testbed.api.pausable_clock import PausableClock
    from testbed.pytest_plugin.guests import Guests
    from testbed.store.kernels.table import KernelTable
    from testbed.topology import Topology


class PluginState:
    """`patience`, `background` and `testbed` are None until a test asks for a guest."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.patience: PausableClock | None = None
        self.background: ThreadLoop | None = None
        self.testbed: Testbed | None = None
        self._open: Any = None
        self._table: KernelTable | None = None
        # Points of a topology by what it was read from; what some kernel was found to lack.
        self.points: dict[str, dict[str, Topology]] = {}
        self.lacking: dict[tuple[str, Any], str] = {}
        self.first_kernel = ""

    @property
    def table(self) -> KernelTable:
        """The kernels that have names."""
        if self._table is None:
            from testbed.store.kernels.table import shipped_table

            self._table = shipped_table()
        return self._table

    def open(self, artifacts: Path) -> Testbed:
        """The testbed, opened when it is first asked for.

        :raise TestbedError: this machine cannot run it.
        """
        from testbed.api import testbed
        from testbed.api.event_loops import ThreadLoop
        from testbed.api.pausable_clock import PausableClock
        from testbed.pytest_plugin.notes import PluginNotes

        self.patience = self.patience or PausableClock()
        self.background = background = ThreadLoop()
        kernels = (self.first_kernel,) if self.first_kernel else ()
        self._open = testbed.open_guests(
            background,
            self.patience,
            PluginNotes(self.config),
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
        """End what was opened."""
        if self.background is None:
            return
        if self._open is not None:
            self.background.wait(self._open.__aexit__(None, None, None))
            self._open = None
        self.background.close()
        self.background = self.testbed = self.patience = None

    @property
    def worker(self) -> str:
        """The name of this worker of pytest-xdist, or empty."""
        return str(getattr(self.config, "workerinput", {}).get("workerid", ""))

    def say(self, text: str) -> None:
        """Show a line at once, whatever pytest captures."""
        who = f"testbed [{self.worker}]" if self.worker else "testbed"
        capture = self.config.pluginmanager.getplugin("capturemanager")
        if capture is None:
            sys.stderr.write(f"{who}: {text}\n")
            return
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\n{who}: {text}\n")
            sys.stderr.flush()


STATE = pytest.StashKey[PluginState]()
GUESTS: pytest.StashKey[Guests] = pytest.StashKey()
