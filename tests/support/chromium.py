"""Drives Debian's Chromium by playwright, whose virtual environment `./tb` names in TESTBED_BROWSER."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

PROGRAM = Path("/usr/bin/chromium")
_QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-extensions",
)


def lacks() -> str | None:
    """Return why there is no browser to test with, or None."""
    if not os.environ.get("TESTBED_BROWSER"):
        return "TESTBED_BROWSER is not set: start the tests with ./tb test"
    return None if PROGRAM.exists() else f"{PROGRAM} is not there: apt-get install chromium"


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """Start a new browser, without a window and without a network; root has no sandbox."""
    packages = os.environ["TESTBED_BROWSER"]
    if packages not in sys.path:
        sys.path.append(packages)  # last: our own packages have precedence
    from playwright.async_api import async_playwright

    options = [*_QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=str(PROGRAM), args=options)
        try:
            yield started
        finally:
            await started.close()
