"""Runs the command line of this tree in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def testbed(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with its cache and state below `folder`."""
    env = {
        **os.environ,
        "TESTBED_CACHE": str(folder / "cache"),
        "TESTBED_STATE": str(folder / "state"),
        "COLUMNS": "200",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "testbed", *words], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )


testbed.__test__ = False  # type: ignore[attr-defined]  # pytest takes its name for a test's
