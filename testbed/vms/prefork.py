"""Processes that wait for an order: copies of this one, made while it has neither threads nor an event loop.

A supervisor is such a copy, because a Python that starts anew takes most of a second to load what this one has loaded already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

_GRACE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreforkedWorker:
    """One that waits; `wire` is read by it until it has its order, and then it answers there."""

    pid: int
    wire: socket.socket

    def end(self) -> None:
        """Ask it to end, and wait until it has; one that does not is killed, and takes its QEMU along."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            until = time.monotonic() + _GRACE_S
            while time.monotonic() < until:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return
                time.sleep(0.02)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def fork_workers(count: int, serve: Callable[[socket.socket], NoReturn]) -> Iterator[tuple[PreforkedWorker, ...]]:
    """So many copies, each in a session of its own, in which `serve` runs; it must not return.

    When this is left, the wires are closed: one without an order reads the end of it, and ends.
    """
    found: list[PreforkedWorker] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for end in (ours, *(other.wire for other in found)):
                end.close()
            serve(theirs)
        theirs.close()
        found.append(PreforkedWorker(pid=pid, wire=ours))
    try:
        yield tuple(found)
    finally:
        for spare in found:
            spare.wire.close()
