"""Exchanges lines with the agent, process 1 of the guest (images/guest/testbed-agent), over a virtio-serial port."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from testbed.errors import GuestError, WireBroken
from testbed.guest.channels import kernel_log
from testbed.guest.channels.console import MAX_LINE_BYTES, open_channel

# An answer of the agent: a table of all cgroups of a guest fits.
_MAX_ANSWER_BYTES = 8 << 20


class Agent:
    """The agent's port: requests and answers are single lines. The guest's end is images/guest/testbed-agent."""

    def __init__(self, guest: str) -> None:
        self._guest = guest
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._turn = asyncio.Lock()
        self._turns = itertools.count()

    async def connect(self, path: Path) -> None:
        """Connect to the unix socket of the agent's port."""
        self._reader, self._writer = await open_channel(path)

    async def ask(self, verb: str, **words: str) -> tuple[tuple[str, ...], str]:
        """Send a request whose answer has several lines, the last of which begins with `verb`; returns the lines before
        it, and its rest.

        Requests are sent one at a time. Late answers to a request whose caller has given up are dropped.

        :raise GuestError: the agent reports a failure, or answers too much. :raise WireBroken: the connection is
        closed.
        """
        async with self._turn:
            mark = f"turn={next(self._turns)}"
            self.send(f"{verb} {mark}", **words)
            lines: list[str] = []
            room_bytes = _MAX_ANSWER_BYTES
            while True:
                word, _, rest = (line := await self._line(verb)).partition(" ")
                if word != verb:
                    lines.append(line)
                    room_bytes -= len(line) + 1
                    if room_bytes < 0:
                        most = f"at most {_MAX_ANSWER_BYTES} bytes"
                        raise GuestError(f"guest {self._guest}: agent: expected {most} before `{verb}`, got more")
                elif rest.split(" ", 1)[0] == mark:
                    return tuple(lines), rest
                else:
                    lines.clear()

    async def exchange(self, verb: str, answer: str, **words: str) -> str:
        """Send one line and wait for the line that answers it; see `expect`."""
        async with self._turn:
            self.send(verb, **words)
            return await self.expect(answer)

    async def expect(self, word: str) -> str:
        """Wait for a line that begins with `word`, and return the rest of it.

        :raise GuestError: the agent reports a failure. :raise WireBroken: the connection is closed.
        """
        while True:
            verb, _, rest = (await self._line(word)).partition(" ")
            if verb == word:
                return rest

    async def _line(self, word: str) -> str:
        """Read the next line. `word` is what the caller waits for, for messages."""
        assert self._reader is not None
        try:
            line = (await self._reader.readline()).decode(errors="replace")
        except (ValueError, OSError) as error:
            raise WireBroken(f"guest {self._guest}: agent: expected a line `{word}`, got {error}") from error
        if not line:
            raise WireBroken(f"guest {self._guest}: agent: expected a line `{word}`, got the end of the wire")
        answer = kernel_log.clean(line.rstrip(), MAX_LINE_BYTES)
        if answer.startswith("failed "):
            raise GuestError(
                f"guest {self._guest}: agent: expected `{word}`, got a failure: {answer.removeprefix('failed ')}"
            )
        return answer

    def send(self, verb: str, **words: str) -> None:
        """Send one line; values must not contain spaces."""
        assert self._writer is not None
        self._writer.write((" ".join([verb, *(f"{name}={value}" for name, value in words.items())]) + "\n").encode())

    def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
