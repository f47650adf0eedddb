"""The body of a supervisor process: reads the spec of its VM from its socket, detaches from the launching process, and
supervises."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from testbed.host import paths
from testbed.vms import launcher, supervisor
from testbed.vms.supervisor import Report, VmSpec

# Runs a coroutine to its end while SIGINT, SIGTERM and SIGHUP cancel it, and exits with its result.
RunAndExit = Callable[[Coroutine[Any, Any, int]], NoReturn]


def serve(connection: socket.socket, run: RunAndExit, error_status: int) -> NoReturn:
    """Supervise the VM whose spec arrives on `connection`, and exit. `error_status`: the exit status after an
    unexpected error."""
    status: object = error_status
    try:
        line = connection.makefile("rb").readline()
        if not line:
            os._exit(0)
        spec = VmSpec.from_json(line.decode())
        _detach(spec)

        def report(message: dict[str, object]) -> None:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")

        run(_supervise(connection, spec, report))
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else error_status)


def _detach(spec: VmSpec) -> None:
    """Keep nothing of the launching process open: its standard streams or its working directory."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    paths.resolve_environment()
    os.chdir("/")


async def _supervise(connection: socket.socket, spec: VmSpec, report: Report) -> int:
    """Supervise; end as well when the launching process is gone before it has sent KEPT, since nobody would know of
    this VM."""
    loop = asyncio.get_running_loop()

    def on_readable() -> None:
        loop.remove_reader(connection)
        kept = b""
        with contextlib.suppress(ConnectionResetError):  # it went with reports of ours that it had not read
            kept = connection.recv(len(launcher.KEPT))
        if kept:
            connection.close()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(connection, on_readable)
    return await supervisor.supervise(spec, report)
