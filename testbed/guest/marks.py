"""Events that a guest's timeline waits for: marks, set by a test or by the guest itself, and lines of the console."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from testbed.guest.channels.console import Console
from testbed.guest.channels.kernel_log import clean
from testbed.regex import LONGEST_LINE, compile_user_regex, escape


class Marks:
    """The marks of one guest. A mark stays reached; a console line counts only while a task waits for it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def reach(self, name: str) -> None:
        """Set a mark, so that the acts that wait for it begin."""
        self._reached[name].set()

    async def wait_for_mark(self, name: str) -> None:
        """Wait until a mark is reached, also by a line `testbed-mark NAME` on the console."""
        if not self._reached[name].is_set():
            printed = asyncio.create_task(self._wait_for_printed_mark(name))
            try:
                await self._reached[name].wait()
            finally:
                printed.cancel()

    async def _wait_for_printed_mark(self, name: str) -> None:
        await self.wait_for_line(rf"testbed-mark {escape(name)}(\s|$)")
        self.reach(name)

    async def wait_for_line(self, pattern: str) -> str:
        """Wait for a line of the console that matches a regular expression, and return it."""
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        regex, pending = compile_user_regex(pattern), b""

        def search(data: bytes) -> None:
            nonlocal pending
            *lines, pending = (pending + data).split(b"\n")
            pending = pending[:LONGEST_LINE]
            for line in lines:
                text = clean(line[:LONGEST_LINE].decode(errors="replace").rstrip())
                if regex.search(text) and not found.done():
                    found.set_result(text)

        with self._console.listening(search):
            return await found
