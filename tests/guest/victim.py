"""`testbed` as it is, but for what happens when a guest of it comes into a state:

    python -m tests.guest.victim HURT STATE WORDS...

HURT: `us` kills the process that has the guest, `starter` the command that was typed, `qemu` the guest's QEMU.
"""

from __future__ import annotations

import os
import signal
import sys

from testbed.cli import main
from testbed.guest import Guest
from testbed.life import Life
from testbed.lifecycle import Event


def hurt(how: str, at: str) -> None:
    """Let it happen, once."""
    starter, real = os.getpid(), Life._advance

    def advance(self: Life, event: Event) -> None:
        real(self, event)
        if self.state.name == at:
            Life._advance = real  # type: ignore[method-assign]  # as it was
            assert isinstance(self, Guest)
            os.kill({"us": os.getpid(), "starter": starter, "qemu": self.pid}[how], signal.SIGKILL)

    Life._advance = advance  # type: ignore[method-assign]  # the point of this


if __name__ == "__main__":
    hurt(*sys.argv[1:3])
    sys.argv = ["testbed", *sys.argv[3:]]
    main()
