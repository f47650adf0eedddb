"""Connects this terminal to a guest's serial console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import termios
import tty
from collections.abc import Iterator

from testbed.cli.app import err
from testbed.errors import HostError
from testbed.host.control_client import ControlClient
from testbed.host.registry import VmHandle

_ESCAPE = b"\x1d"  # Ctrl-], as telnet and virsh have it
# How long to go on reading without output from the guest after the input has ended.
_QUIET_S = 2.0


async def attach(vm: VmHandle) -> int:
    """Forward input to the guest's shell and print its output until Ctrl-]; return the exit code.

    :raise HostError: the guest has ended.
    """
    columns, rows = shutil.get_terminal_size()
    await ControlClient(vm).shell(rows=rows, columns=columns)
    connection = _Connection(*await asyncio.open_unix_connection(vm.folder / "console"))
    if sys.stdin.isatty():
        err.print(f"console of {vm.record.name}; Ctrl-] leaves it", markup=False, highlight=False)
        connection.send(b"\n")  # the shell has printed its prompt already; this makes it print another
    with _raw_terminal(), contextlib.closing(connection):
        await connection.forward()
    if connection.closed_by_guest:
        raise HostError(
            f"{vm.record.name}: its console has ended, as the guest did or is started anew; "
            f"its logs: {vm.record.evidence}"
        )
    return 0


class _Connection:
    """Copies standard input to a console's socket, and the socket to standard output."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._escaped = asyncio.Event()
        self._input_ended = False
        self.closed_by_guest = False

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()

    async def forward(self) -> None:
        """Copy both ways until the escape character, the end of the socket, or silence after the end of the input."""
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(0, self._on_input)
        except PermissionError:  # a file or /dev/null, which epoll cannot wait for
            while not (self._input_ended or self._escaped.is_set()):
                self._on_input()
        tasks = [asyncio.create_task(self._print_output()), asyncio.create_task(self._escaped.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _on_input(self) -> None:
        data = os.read(0, 4096)
        before, escape, _ = data.partition(_ESCAPE)
        self._writer.write(before)
        if escape:
            self._escaped.set()
        elif not data:
            asyncio.get_running_loop().remove_reader(0)
            self._input_ended = True

    async def _print_output(self) -> None:
        while True:
            try:
                # Not wait_for(): if data comes while it is being cancelled, it goes on (Python 3.11).
                async with asyncio.timeout(_QUIET_S):
                    data = await self._reader.read(4096)
            except TimeoutError:
                if self._input_ended:
                    return
                continue
            if not data:
                self.closed_by_guest = True
                return
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Switch off line editing and echo of the terminal: the guest does both."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
