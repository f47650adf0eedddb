"""Processes that export a disk's bytes to QEMU (`testbed.export`): one for each disk that has delays, losses or a volatile cache."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testbed import jsons, process
from testbed.errors import HostError
from testbed.hardware.faults import Fault
from testbed.hardware.latency import Latency

_ANSWER_S = 30.0
_SOURCES = Path(__file__).parents[1]


class Export:
    """One such process; it ends when we do."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, socket: Path, log: Path) -> None:
        self._name, self._child, self.socket, self._log = name, child, socket, log
        self._asking = asyncio.Lock()

    @classmethod
    async def start(cls, name: str, settings: Mapping[str, Any], socket: Path, log: Path) -> Export:
        """Export what `settings` say (`file`, `room_bytes`, `read_only`, `cache`, `drops_fua`) on a new socket; what goes wrong with
        its requests is written to `log`, a line of JSON each.

        :raise HostError: it does not start.
        """
        words = [sys.executable, "-m", "testbed.export", json.dumps({**settings, "socket": str(socket)})]
        child = await process.start(words, output=log, env={"PYTHONPATH": str(_SOURCES)}, talking=True)
        found = cls(name, child, socket, log)
        try:
            await found._answer()
        except BaseException:
            await found.close()
            raise
        return found

    async def delay(self, latency: Latency) -> None:
        await self._tell("latency", **asdict(latency))

    async def fail(self, faults: tuple[Fault, ...]) -> None:
        await self._tell("faults", faults=[asdict(fault) for fault in faults])

    async def hold(self, seconds: float) -> None:
        """Let no request end for so long; 0 lets them go."""
        await self._tell("hold", seconds=seconds)

    async def hurry(self) -> None:
        """End all requests that wait for their time."""
        await self._tell("hurry")

    async def lose(self, share: float, seed: int, *, end: bool = False) -> int:
        """Each block that is only in the cache stays with the probability `share`; `end`: no request ends from now on.

        Returns how many blocks were lost.
        """
        return int((await self._tell("lose", share=share, seed=seed, end=end))["lost_blocks"])

    async def _tell(self, verb: str, **words: Any) -> dict[str, Any]:
        async with self._asking:
            assert self._child.stdin is not None
            with contextlib.suppress(ConnectionError):  # then there is no answer either
                self._child.stdin.write(json.dumps({"verb": verb, **words}).encode() + b"\n")
                await self._child.stdin.drain()
            return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        try:
            async with asyncio.timeout(_ANSWER_S):
                line = await self._child.stdout.readline()
        except TimeoutError:
            raise HostError(f"disk {self._name}: its export: expected an answer within {_ANSWER_S:.0f} s, got none") from None
        if not line:
            raise HostError(f"disk {self._name}: its export ended; see {self._log}")
        answer: dict[str, Any] = jsons.parsed(line)
        if "error" in answer:
            raise HostError(f"disk {self._name}: its export: {answer['error']}")
        return answer

    async def close(self) -> None:
        """End it, with what is in its cache."""
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()
        await self._child.wait()
        self.socket.unlink(missing_ok=True)
