"""A second QMP connection to a guest's QEMU, for queries that are made many times a second: blocking, in the thread
that makes them.

A query takes a third of the processor time that it takes through `monitor`, whose client passes each message through
five queues and tasks, each of which wakes a sleeping thread (`./tb bench hardware`).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

from testbed.errors import HostError, WireBroken
from testbed.text import parse_json_object

_TIMEOUT_S = 60.0
_CHUNK = 1 << 18
# 256 disks with all of QEMU's statistics are 1.5 MB.
_MOST_BYTES = 1 << 24


class BlockingMonitor:
    """Connects at the first query. QEMU sends its events here as well, and nothing reads them: call
    `disconnect_if_idle` after the last query.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self._one_query = threading.Lock()
        self._socket: socket.socket | None = None
        self._received = bytearray()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run a command and return QEMU's answer.

        :raise HostError: QEMU refuses the command, or does not answer.
        :raise WireBroken: QEMU is gone, or another thread has closed this connection meanwhile.
        """
        with self._one_query:
            try:
                if self._socket is None:
                    self._connect()
                return self._execute(command, arguments or {})
            except TimeoutError:
                self._disconnect()
                raise HostError(
                    f"guest {self._name}: QEMU: expected an answer to {command} within {_TIMEOUT_S:.0f} s, got none"
                ) from None
            except (OSError, ValueError) as error:
                self._disconnect()
                raise WireBroken(
                    f"guest {self._name}: QEMU's monitor for samples went away during {command}: {error}"
                ) from error

    def disconnect_if_idle(self) -> None:
        """Close the connection unless a query is running; the next query connects again."""
        if self._one_query.acquire(blocking=False):
            try:
                self._disconnect()
            finally:
                self._one_query.release()

    def close(self) -> None:
        """Close the connection, and end a query that is running."""
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            with self._one_query:
                self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._received.clear()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.connect(str(self._path))
        self._read_message()  # the greeting
        self._execute("qmp_capabilities", {})

    def _execute(self, command: str, arguments: dict[str, Any]) -> Any:
        assert self._socket is not None
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            message = self._read_message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                why = message["error"].get("desc")
                raise HostError(f"guest {self._name}: QEMU refused {command} {json.dumps(arguments)}: {why}")

    def _read_message(self) -> dict[str, Any]:
        assert self._socket is not None
        while (end := self._received.find(b"\n")) < 0:
            chunk = self._socket.recv(_CHUNK)
            if not chunk or len(self._received) > _MOST_BYTES:
                raise ConnectionError(
                    "it ended" if not chunk else f"expected a message of at most {_MOST_BYTES} bytes, got more"
                )
            self._received += chunk
        message = parse_json_object(self._received[:end])
        del self._received[: end + 1]
        return message
