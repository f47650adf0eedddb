"""This terminal as a guest's serial console."""

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
from testbed.host.registry import VmHandle

_LEAVE = b"\x1d"  # Ctrl-], as telnet and virsh have it
# Where the input ends before the user leaves: until nothing more has come for so long.
_QUIET_S = 2.0


async def attach(vm: VmHandle) -> int:
    """Pass on what is typed, and show what comes, until Ctrl-].

    :raise HostError: the guest has ended.
    """
    columns, rows = shutil.get_terminal_size()
    await vm.ask("shell", rows=rows, columns=columns)
    reader, writer = await asyncio.open_unix_connection(vm.folder / "console")
    left = asyncio.Event()
    typed_all = ended = False

    def on_input() -> None:
        nonlocal typed_all
        data = os.read(0, 4096)
        before, leave, _ = data.partition(_LEAVE)
        writer.write(before)
        if leave:
            left.set()
        elif not data:
            loop.remove_reader(0)
            typed_all = True

    async def show() -> None:
        nonlocal ended
        while True:
            try:
                # Not wait_for(): where data comes as it is cancelled, that one goes on (Python 3.11).
                async with asyncio.timeout(_QUIET_S):
                    data = await reader.read(4096)
            except TimeoutError:
                if typed_all:
                    return
                continue
            if not data:
                ended = True
                return
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    if sys.stdin.isatty():
        err.print(f"console of {vm.record.name}; Ctrl-] leaves it", markup=False, highlight=False)
        writer.write(b"\n")  # a shell that has printed its prompt already prints another
    loop = asyncio.get_running_loop()
    with _raw(), contextlib.closing(writer):
        try:
            loop.add_reader(0, on_input)
        except PermissionError:  # a file, or /dev/null: there is nothing to wait for
            while not (typed_all or left.is_set()):
                on_input()
        tasks = [asyncio.create_task(show()), asyncio.create_task(left.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if ended:
        raise HostError(
            f"{vm.record.name}: its console has ended, as the guest did or is started anew; its logs: {vm.record.evidence}"
        )
    return 0


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """The terminal without line editing and echo: the guest does both."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
