"""Runs `testbed` with a fault that strikes when a guest reaches a state:

    python -m tests.support.victim HURT STATE WORDS...

HURT: `us` kills the process that owns the guest, `starter` the command that was typed, `qemu` the guest's QEMU. STATE:
a guest is PLANNED when its disks exist and its QEMU is about to start; for LOST, its QEMU is killed before. SAVING: a
template's state is being written.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from testbed.cli import main
from testbed.guest.guest import Guest
from testbed.guest.lifecycle import Event, State
from testbed.guest.liveness import Liveness
from testbed.qemu import command_line
from testbed.qemu.monitor import Monitor

SAVING = "SAVING"


def hurt(how: str, at: str) -> None:
    """Install the fault; it strikes once."""
    starter, advance, argv, execute = os.getpid(), Liveness.advance, command_line.argv, Monitor.execute

    def strike(qemu: int) -> None:
        os.kill({"us": os.getpid(), "starter": starter, "qemu": qemu}[how], signal.SIGKILL)

    def advancing(self: Liveness, event: Event) -> None:
        advance(self, event)
        assert isinstance(self, Guest)
        if at == "LOST" and self.state is State.MONITORED:
            os.kill(self.pid, signal.SIGKILL)
        if self.state.name == at:
            Liveness.advance = advance  # type: ignore[method-assign]  # as it was
            strike(self.pid)

    def planning(*given: Any, **named: Any) -> Any:
        command_line.argv = argv
        strike(0)
        return argv(*given, **named)

    async def executing(self: Monitor, command: str, *given: Any, **named: Any) -> Any:
        if command == "query-migrate":
            Monitor.execute = execute  # type: ignore[method-assign]  # as it was
            strike(0)
        return await execute(self, command, *given, **named)

    if at == State.PLANNED.name:
        command_line.argv = planning
    elif at == SAVING:
        Monitor.execute = executing  # type: ignore[method-assign]  # the point of this
    else:
        Liveness.advance = advancing  # type: ignore[method-assign]  # the point of this


if __name__ == "__main__":
    hurt(*sys.argv[1:3])
    sys.argv = ["testbed", *sys.argv[3:]]
    main()
