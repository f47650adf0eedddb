"""Measures this machine: bench disks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from testbed.cli.app import KERNEL_HELP, Json, Quiet, app, err, in_run_folder, out, run_async
from testbed.guest.factory import open_factory
from testbed.guest.metrics import disk_speed
from testbed.guest.metrics.disk_speed import DiskSpeed
from testbed.host import paths
from testbed.report import live
from testbed.store.kernels.table import shipped_table
from testbed.units import format_size

bench = typer.Typer(no_args_is_help=True, help="How fast this machine is.", rich_markup_mode=None)
app.add_typer(bench, name="bench")


@bench.callback()
def _group() -> None:
    """How fast this machine is."""


@bench.command("disks")
def disks(
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", help=KERNEL_HELP)] = None,
    seconds: Annotated[float, typer.Option(min=1, help="For each of three loads on each kind of disk.")] = 3,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast emulated disks can be here; runs warn about profiles that ask for more."""
    spec = kernel or shipped_table().patched

    async def work() -> int:
        with live.progress(err, quiet=quiet) as progress:
            async with open_factory(progress, kernels=(spec,)) as factory:
                folder = paths.new_run_folder(factory.folders.runs)
                with in_run_folder(folder):
                    speeds = await disk_speed.measure(
                        factory, await factory.kernel(spec), folder / "bench", seconds=seconds
                    )
                disk_speed.save(speeds, factory.folders.cache, factory.host)
        if as_json:
            print(json.dumps({kind: asdict(speed) for kind, speed in speeds.items()}))
        else:
            out.print(_table(speeds))
        return 0

    run_async(work())


def _table(speeds: dict[str, DiskSpeed]) -> Table:
    table = Table("disk", "4K random reads/s, 32 at once", "1M reads, 32 at once", "one 4K read alone")
    for kind, speed in speeds.items():
        read_ms = f"{speed.read_us / 1000:.2f} ms"
        table.add_row(kind, f"{speed.iops:.0f}", f"{format_size(speed.bytes_per_s)}/s", read_ms)
    return table
