"""A second QMP connection to a guest's QEMU, for what is asked many times a second: blocking, in the thread that asks.

Asking this way takes a third of the processor time that it takes through `monitor`, whose client hands each message through five queues and
tasks, each of which wakes a sleeping thread (`./tb bench hardware`).
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

_ANSWER_S = 60.0
_CHUNK = 1 << 18
# 256 disks with all that QEMU says of each are 1.5 MB.
_MOST_BYTES = 1 << 24


class BlockingMonitor:
    """Connects when it is asked. QEMU tells it of events as well, which nobody reads: who asks no longer lets it `rest`."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self._asking = threading.Lock()
        self._socket: socket.socket | None = None
        self._read = bytearray()

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What QEMU answers.

        :raise HostError: it refuses the command, or does not answer. :raise WireBroken: it is gone, or somebody has closed this meanwhile.
        """
        with self._asking:
            try:
                if self._socket is None:
                    self._connect()
                return self._ask(command, arguments or {})
            except TimeoutError:
                self._drop()
                raise HostError(
                    f"guest {self._name}: QEMU: expected an answer to {command} within {_ANSWER_S:.0f} s, got none"
                ) from None
            except (OSError, ValueError) as error:
                self._drop()
                raise WireBroken(
                    f"guest {self._name}: QEMU's monitor for samples went away during {command}: {error}"
                ) from error

    def rest(self) -> None:
        """End the connection, unless somebody is asking just now; whoever asks next connects again."""
        if self._asking.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._asking.release()

    def close(self) -> None:
        """End the connection, and the wait of whoever asks."""
        wire = self._socket
        if wire is not None:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            with self._asking:
                self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._read.clear()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_ANSWER_S)
        self._socket.connect(str(self._path))
        self._message()  # the greeting
        self._ask("qmp_capabilities", {})

    def _ask(self, command: str, arguments: dict[str, Any]) -> Any:
        assert self._socket is not None
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            message = self._message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                why = message["error"].get("desc")
                raise HostError(f"guest {self._name}: QEMU refused {command} {json.dumps(arguments)}: {why}")

    def _message(self) -> dict[str, Any]:
        assert self._socket is not None
        while (end := self._read.find(b"\n")) < 0:
            received = self._socket.recv(_CHUNK)
            if not received or len(self._read) > _MOST_BYTES:
                raise ConnectionError(
                    "it ended" if not received else f"expected a message of at most {_MOST_BYTES} bytes, got more"
                )
            self._read += received
        message = parse_json_object(self._read[:end])
        del self._read[: end + 1]
        return message
