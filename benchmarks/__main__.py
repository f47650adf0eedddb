"""`./tb bench WHAT`: how fast the testbed is on this host (clone, compare, plugin, report, sampling, topology, up), how true its disks are
(hardware, export, power, replug), how often its bugs show (museum), what tests of others are on several kernels (suites), and what it
leaves behind when it is killed and hurt (kills, soak). Prints a table, or JSON with `--json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import (
    clone,
    compare,
    export,
    hardware,
    kills,
    museum,
    plugin,
    power,
    replug,
    report,
    sampling,
    soak,
    suites,
    topology,
    up,
)
from testbed import cli
from testbed.cli.app import run_async

T = TypeVar("T")
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
    _run(clone.measure(count=count, cold=cold, kernel=kernel), _show, as_json)


@app.command("compare")
def compare_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Runs.")] = 3, as_json: Json = False
) -> None:
    """What a warm `compare oom-tmpfs` adds to the time of the guests' own script."""
    _run(compare.measure(count=count), _show, as_json)


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
    _run(up.measure(count=count, kernel=kernel), _show, as_json)


@app.command("plugin")
def plugin_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Tests, one after the other.")] = 20,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """What the pytest plugin adds to a test that has a guest, and to collecting a thousand."""
    _run(plugin.measure(count=count, kernel=kernel), _show, as_json)


@app.command("export")
def export_command(
    requests: Annotated[int, typer.Option(min=100, help="At most, for each measure.")] = 20_000,
    as_json: Json = False,
) -> None:
    """The export that delays requests, beside the file itself and, where it is installed, nbdkit: on the host, without a guest."""
    _run(export.measure(requests=requests), _rows, as_json)


@app.command("power")
def power_command(
    cuts: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Power cuts in a row, for each disk and filesystem.")
    ] = 20,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    seed: Annotated[int, typer.Option(help="Of what the disks lose.")] = 1,
    as_json: Json = False,
) -> None:
    """Power cuts under a load that syncs: what fsync acknowledged and is gone, on disks that are true and on ones that lie."""
    _run(power.measure(cuts=cuts, kernel=kernel, seed=seed), _rows, as_json)


@app.command("replug")
def replug_command(
    cycles: Annotated[int, typer.Option("--count", "-n", min=1, help="For each kind of disk.")] = 100,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Disks that are taken out and put in again under I/O, every other time by surprise: what became of the guest."""
    _run(replug.measure(cycles=cycles, kernel=kernel), _rows, as_json)


@app.command("kills")
def kills_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="SIGKILLs, one after the other.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the commands, and the moments.")] = 1,
    as_json: Json = False,
) -> None:
    """Commands that are killed at random moments, and what of them is left."""
    _run(kills.measure(count=count, seed=seed), _show, as_json, fails=lambda found: bool(found["left"]))


@app.command("soak")
def soak_command(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what happens.")] = 1,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Guests, scenarios, faults and kills by chance: what the testbed holds of memory, files, processes and disk stays the same."""
    _run(
        soak.measure(minutes=minutes, seed=seed, kernel=kernel),
        _show,
        as_json,
        fails=lambda found: bool(found["growing"]),
    )


@app.command("report")
def report_command(
    cases: Annotated[int, typer.Option(min=1, help="Of the large report.")] = 1000,
    opens: Annotated[int, typer.Option("--count", "-n", min=1, help="Times that each report is opened.")] = 5,
    as_json: Json = False,
) -> None:
    """The report of a run, and one of many cases: to write all its files, its size, and to open it in Chromium."""
    _run(report.measure(cases=cases, opens=opens), _rows, as_json)


@app.command("sampling")
def sampling_command(
    seconds: Annotated[float, typer.Option(min=1, help="For each measure.")] = 10,
    rounds: Annotated[int, typer.Option("--count", "-n", min=1, help="Of the load, without and with samples.")] = 5,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """What samples of disks and control groups cost a guest that is idle, and one at work."""
    _run(sampling.measure(kernel=kernel, seconds=seconds, rounds=rounds), _rows, as_json)


@app.command("hardware")
def hardware_command(
    seconds: Annotated[float, typer.Option(min=1, help="For each measure.")] = 10,
    changes: Annotated[int, typer.Option(min=1, help="Changes of a limit under load.")] = 1000,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Limits and delays of emulated disks as a guest sees them, beside what they were told to be."""
    _run(hardware.measure(kernel=kernel, seconds=seconds, changes=changes), _limits, as_json)


def _limits(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("device", "limit", "measured", "off by", "unit")
    for row in rows:
        limit, measured = row["limit"], row["measured"]
        off = f"{measured / limit - 1:+.1%}" if limit else ""
        table.add_row(row["device"], "none" if limit is None else f"{limit:g}", f"{measured:g}", off, row["unit"])
    Console().print(table)


@app.command("museum")
def museum_command(
    names: Annotated[list[str] | None, typer.Argument(help="Bugs of topologies/bugs; all without any.")] = None,
    tries: Annotated[int, typer.Option("--tries", "-n", min=1, help="On each kernel.")] = 20,
    kernels: Annotated[str, typer.Option(help="Only on these, with commas between.")] = "",
    as_json: Json = False,
) -> None:
    """How often each bug of the museum shows where it must, and where it must not: a Markdown table."""
    _run(
        museum.measure(tuple(names or ()), tuple(name for name in kernels.split(",") if name), tries),
        _markdown,
        as_json,
    )


@app.command("suites")
def suites_command(
    runs: Annotated[list[str], typer.Argument(help="Runs of `testbed suite`, on several kernels or several times.")],
) -> None:
    """What each test of a suite was on each kernel, and which were not the same each time: Markdown. Runs nothing."""
    print(suites.markdown([suites.read(run) for run in runs]), end="")


def _markdown(rows: list[dict[str, Any]], as_json: bool) -> None:
    print(json.dumps(rows, indent=1) if as_json else "\n".join(museum.markdown(rows)))


def _run(
    work: Coroutine[Any, Any, T],
    tell: Callable[[T, bool], None],
    as_json: bool,
    *,
    fails: Callable[[T], bool] = lambda found: False,
) -> None:
    """Measure, tell, and exit, with 1 where it `fails`; a signal ends it as it ends every verb."""

    async def whole() -> int:
        found = await work
        tell(found, as_json)
        return int(fails(found))

    run_async(whole())


def _rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = dict.fromkeys(name for row in rows for name in row)
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    Console().print(table)


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = Table(show_header=False)
    for name, value in figures.items():
        shown = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, shown)
    Console().print(table)


cli.main(lambda: app(prog_name="tb bench"))
