"""Entry point of `testbed` and `python -m testbed`."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Import the command line and run it. Until it is imported, Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    _restart_in_utf8_mode()
    from testbed import cli

    cli.main()


def _restart_in_utf8_mode() -> None:
    """Start Python again in UTF-8 mode if the locale has another encoding: YAML files and QEMU's arguments are
    UTF-8.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell, and our own arguments


if __name__ == "__main__":
    main()
