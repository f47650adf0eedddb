"""Forks supervisor processes in advance, while this process has neither threads nor an event loop.

A supervisor is a fork of this process because a new Python interpreter takes most of a second to load what is loaded
here already.
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
    """A forked process that waits. It reads the spec of its VM from `socket`, and reports there."""

    pid: int
    socket: socket.socket

    def end(self) -> None:
        """Ask the process to end, and wait until it has; one that does not is killed, and its QEMU is killed with
        it."""
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
    """Fork `count` workers, each in a session of its own, which run `serve`; it must not return.

    At the end the sockets are closed: a worker that has no spec yet reads end of file, and exits.
    """
    workers: list[PreforkedWorker] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for end in (ours, *(other.socket for other in workers)):
                end.close()
            serve(theirs)
        theirs.close()
        workers.append(PreforkedWorker(pid=pid, socket=ours))
    try:
        yield tuple(workers)
    finally:
        for worker in workers:
            worker.socket.close()
