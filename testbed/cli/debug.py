"""Debugs a guest's kernel: gdb, dump. A module of its own because it imports the guest package, which is slow."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.app import app, err, run_async, run_to_end
from testbed.cli.vms import VmArgument, become
from testbed.errors import UsageError
from testbed.guest.debug import gdb as debugger
from testbed.guest.debug import vmcore
from testbed.host import paths, registry
from testbed.host.control_client import ControlClient
from testbed.units import format_size

_GDB_S, _DUMP_S = 120.0, 700.0


@app.command()
def gdb(
    vm: VmArgument,
    symbols: Annotated[
        Path | None, typer.Option("--symbols", help="A vmlinux or System.map of its kernel; else its own kallsyms.")
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the command instead of running it.")] = False,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGUMENTS", help="More arguments for gdb, such as -batch -ex bt.")
    ] = None,
) -> None:
    """Debug a guest's kernel with gdb, through QEMU's stub: breakpoints work. The guest is stopped while gdb is
    attached.
    """
    found = registry.find_vm(paths.folders(), vm)

    opened = run_to_end(ControlClient(found).gdb(symbols, timeout_s=_GDB_S))
    if opened["note"]:
        err.print(opened["note"], markup=False, highlight=False, soft_wrap=True)
    words = debugger.command(opened, tuple(more or ()))
    if only_print:
        print(shlex.join(words))
    else:
        become(list(words))


@app.command()
def dump(
    vm: VmArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    kind: Annotated[str, typer.Option("--format", help=f"One of {', '.join(vmcore.FORMATS)}.")] = vmcore.FORMATS[0],
) -> None:
    """Write a guest's memory into a file for crash or drgn; the guest is stopped meanwhile, and may be hung or
    stopped.
    """
    if kind not in vmcore.FORMATS:
        raise UsageError(f"--format {kind}: expected one of {', '.join(vmcore.FORMATS)}")
    found = registry.find_vm(paths.folders(), vm)

    async def work() -> int:
        written = await ControlClient(found).dump(file, kind, timeout_s=_DUMP_S)
        err.print(f"{file}: {format_size(written)} of {vm}'s memory", markup=False, highlight=False)
        return 0

    run_async(work())
