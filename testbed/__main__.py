"""`testbed`, and `python -m testbed`."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Load the command line, and run it. Loading takes a while, in which Ctrl-C has nothing to take down."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    from testbed import cli

    cli.main()


if __name__ == "__main__":
    main()
