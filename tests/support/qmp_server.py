"""A QMP server on a unix socket that answers from a table and records the commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

_GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yield consecutive JSON texts, with or without separators: QMP promises no more."""
    pending = ""
    while data := await reader.read(65536):
        pending = (pending + data.decode()).lstrip()
        while pending:
            try:
                message, end = json.JSONDecoder().raw_decode(pending)
            except ValueError:
                break
            pending = pending[end:].lstrip()
            yield message


class FakeQmp:
    """`answers` maps a command to its return value, an exception whose text refuses it, or None to send no answer."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = {"qmp_capabilities": {}} | answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._send(_GREETING)
        with contextlib.suppress(ConnectionError):
            async for message in _messages(reader):
                command = message["execute"]
                self.asked.append((command, message.get("arguments", {})))
                answer = self.answers.get(command)
                if isinstance(answer, Exception):
                    self._send({"error": {"class": "GenericError", "desc": str(answer)}, "id": message.get("id")})
                elif answer is not None:
                    self._send({"return": answer, **({"id": message["id"]} if "id" in message else {})})

    def _send(self, message: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, data: dict[str, Any]) -> None:
        self._send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}})

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()

    def say(self, raw: bytes) -> None:
        for writer in self._writers:
            writer.write(raw)


@contextlib.asynccontextmanager
async def fake_qmp(socket: Path, answers: dict[str, Any]) -> AsyncIterator[FakeQmp]:
    fake = FakeQmp(answers)
    server = await asyncio.start_unix_server(fake._serve, socket)
    try:
        yield fake
    finally:
        fake.hang_up()
        server.close()
