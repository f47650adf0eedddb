"""The exporting process and its parts, for tests: a process with its client, requests, a memory backing and a clock."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testbed.qemu.nbd_server.backing import DiscardingBacking
from testbed.qemu.nbd_server.device import Device, Request
from testbed.qemu.nbd_server.settings import Settings

ROOT = Path(__file__).parents[2]
KIB = 1024


class Memory:
    """A backing that records the requests that reach it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def trim(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        pass


class Clock:
    """A clock that advances to the time when the device has work."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def go_on(self, device: Device) -> None:
        while (due := device.due()) is not None:
            self.now = max(self.now, due)
            assert device.work()


def ended(device: Device, request: Request) -> tuple[int, bytes]:
    found: list[tuple[int, bytes]] = []
    device.submit(request, lambda error, data: found.append((error, data)))
    return found[0]


def write(offset: int, data: bytes, *, fua: bool = False) -> Request:
    return Request(operation="write", offset=offset, length=len(data), data=data, fua=fua)


def read(offset: int, length: int) -> Request:
    return Request(operation="read", offset=offset, length=length)


class Process:
    """A process that exports a file of 1 MiB. `client`: the client's end of its connection."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        disk = folder / "disk"
        if not disk.exists():
            disk.write_bytes(bytes(1 << 20))
        own, self.client = socket.socketpair()
        with own, disk.open("r+b") as file:
            handed = {"wire": own.fileno(), "file": file.fileno(), "parent": os.getpid()}
            words = [
                sys.executable,
                "-m",
                "testbed.qemu.nbd_server",
                json.dumps(asdict(Settings(**{**handed, **settings}))),
            ]
            self.child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                pass_fds=(own.fileno(), file.fileno()),
            )
        assert self.said() == {}

    def said(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        found: dict[str, Any] = json.loads(self.child.stdout.readline())
        return found

    def tell(self, **asked: Any) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(asked) + "\n")
        self.child.stdin.flush()
        return self.said()

    def end(self) -> int:
        """Close the owner's end, and return the exit status."""
        self.client.close()
        _, errors = self.child.communicate(timeout=20)
        assert "Traceback" not in errors
        return self.child.returncode


class Sparse(DiscardingBacking):
    """A backing that records what was trimmed."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.trimmed: list[tuple[int, int]] = []

    def trim(self, offset: int, length: int) -> None:
        self.trimmed.append((offset, length))
