"""Runs commands for a benchmark; they end when it ends, for whatever reason."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from testbed.errors import HostError


async def output(
    *words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, statuses: tuple[int, ...] = (0,)
) -> str:
    """Return what `python -m WORDS` prints.

    :raise HostError: it ends with another status; its messages are on standard error.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=env,
        cwd=cwd,
    )
    try:
        out, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    if child.returncode not in statuses:
        raise HostError(
            f"{shlex.join(words)}: expected status {' or '.join(map(str, statuses))}, got {child.returncode}"
        )
    return out.decode()
