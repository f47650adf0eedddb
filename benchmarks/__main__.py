"""`./tb bench clone`, `compare`, `topology` and `up`: how fast the testbed is on this host. Prints a table, or JSON with `--json`."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import clone, compare, topology, up

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command("clone")
def clone_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Clones.")] = 50,
    cold: Annotated[int, typer.Option(min=1, help="Cold boots.")] = 3,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """From nothing to the first SSH command answered: warm clones, cold boots, and virtme-ng where it is installed."""
    _show(asyncio.run(clone.measure(count=count, cold=cold, kernel=kernel)), as_json)


@app.command("compare")
def compare_command(count: Annotated[int, typer.Option("--count", "-n", min=1, help="Runs.")] = 3, as_json: Json = False) -> None:
    """What a warm `compare oom-tmpfs` adds to the time of the guests' own script."""
    _show(asyncio.run(compare.measure(count=count)), as_json)


@app.command("topology")
def topology_command(plans: Annotated[int, typer.Option(min=1, help="Plans.")] = 1000, as_json: Json = False) -> None:
    """Validating a matrix of 10,000 points, and planning a guest."""
    _show(topology.measure(plans), as_json)


@app.command("up")
def up_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Guests, one after the other.")] = 5,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """`testbed up` of 16 disks with 16 filesystems, files and loops: the whole command, and what of it is beyond the steps in the guest."""
    _show(up.measure(count=count, kernel=kernel), as_json)


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = Table(show_header=False)
    for name, value in figures.items():
        shown = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, shown)
    Console().print(table)


app(prog_name="tb bench")
