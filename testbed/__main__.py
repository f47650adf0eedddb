"""`testbed`, and `python -m testbed`."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Load the command line, and run it. Loading takes a while, in which Ctrl-C has nothing to take down."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    _speak_utf8()
    from testbed import cli

    cli.main()


def _speak_utf8() -> None:
    """Begin anew in Python's UTF-8 mode where the locale has another encoding: names in YAML files, and what QEMU is told, are UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell, and our own words


if __name__ == "__main__":
    main()
