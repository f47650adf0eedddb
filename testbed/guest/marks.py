"""Events that a guest's timeline waits for: marks that a test or the guest itself sets, and lines of its console."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from testbed.guest.channels.console import Console
from testbed.guest.channels.kernel_log import clean
from testbed.regex import LONGEST_LINE, compile_user_regex, escape


class Marks:
    """Of one guest. A mark that was reached stays reached; a line counts only while somebody waits for it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def reach(self, name: str) -> None:
        """Let the acts begin that wait for this mark."""
        self._reached[name].set()

    async def wait_for_mark(self, name: str) -> None:
        """Wait until the mark is reached."""
        if not self._reached[name].is_set():
            said = asyncio.create_task(self._said(name))
            try:
                await self._reached[name].wait()
            finally:
                said.cancel()

    async def _said(self, name: str) -> None:
        await self.wait_for_line(rf"testbed-mark {escape(name)}(\s|$)")
        self.reach(name)

    async def wait_for_line(self, pattern: str) -> str:
        """Wait for a line of the console that matches, and return it."""
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        wanted, pending = compile_user_regex(pattern), b""

        def hear(data: bytes) -> None:
            nonlocal pending
            *lines, pending = (pending + data).split(b"\n")
            pending = pending[:LONGEST_LINE]
            for line in lines:
                text = clean(line[:LONGEST_LINE].decode(errors="replace").rstrip())
                if wanted.search(text) and not found.done():
                    found.set_result(text)

        with self._console.listening(hear):
            return await found
