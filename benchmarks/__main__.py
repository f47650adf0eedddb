"""Runs `./tb bench WHAT` and prints a table, or JSON with `--json`.

Speed on this host: clone, compare, plugin, report, sampling, topology, up. Whether emulated disks behave as set:
hardware, export, power, replug. How often the museum's bugs show: museum. Results of a shell test suite on several
kernels: suites. What stays behind after faults and kills: kills, soak.
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
    """Time from the start to the first answered SSH command: warm clones, cold boots, and virtme-ng if installed."""
    _run(clone.measure(count=count, cold=cold, kernel=kernel), _show, as_json)


@app.command("compare")
def compare_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Runs.")] = 3, as_json: Json = False
) -> None:
    """Time that a warm `compare oom-tmpfs` takes beyond the guests' own script."""
    _run(compare.measure(count=count), _show, as_json)


@app.command("topology")
def topology_command(plans: Annotated[int, typer.Option(min=1, help="Plans.")] = 1000, as_json: Json = False) -> None:
    """Time to validate a matrix of 10,000 points, and to plan a guest."""
    _show(topology.measure(plans), as_json)


@app.command("up")
def up_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Guests, one after the other.")] = 5,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Time of `testbed up` with 16 disks, filesystems, files and loops: the whole command, and without the steps in the
    guest.
    """
    _run(up.measure(count=count, kernel=kernel), _show, as_json)


@app.command("plugin")
def plugin_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Tests, one after the other.")] = 20,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Time that the pytest plugin adds to a test with a guest, and to collecting a thousand tests."""
    _run(plugin.measure(count=count, kernel=kernel), _show, as_json)


@app.command("export")
def export_command(
    requests: Annotated[int, typer.Option(min=100, help="At most, for each measurement.")] = 20_000,
    as_json: Json = False,
) -> None:
    """Speed of the delaying export, of the file itself and of nbdkit, if installed: on the host, without a guest."""
    _run(export.measure(requests=requests), _rows, as_json)


@app.command("power")
def power_command(
    cuts: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Power cuts in a row, for each disk and filesystem.")
    ] = 20,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    seed: Annotated[int, typer.Option(help="Seed of what the disks lose.")] = 1,
    as_json: Json = False,
) -> None:
    """Records that fsync acknowledged and a power cut lost, on honest disks and on disks that ignore flushes."""
    _run(power.measure(cuts=cuts, kernel=kernel, seed=seed), _rows, as_json)


@app.command("replug")
def replug_command(
    cycles: Annotated[int, typer.Option("--count", "-n", min=1, help="For each kind of disk.")] = 100,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Unplug and plug disks under I/O, every other time by surprise, and check that the guest survives."""
    _run(replug.measure(cycles=cycles, kernel=kernel), _rows, as_json)


@app.command("kills")
def kills_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="SIGKILLs, one after the other.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the commands and moments.")] = 1,
    as_json: Json = False,
) -> None:
    """Kill commands at random moments, and list what they leave behind."""
    _run(kills.measure(count=count, seed=seed), _show, as_json, fails=lambda found: bool(found["left"]))


@app.command("soak")
def soak_command(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what happens.")] = 1,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Run random guests, scenarios, faults and kills; check that memory, files, processes and disk use do not grow."""
    _run(
        soak.measure(minutes=minutes, seed=seed, kernel=kernel),
        _show,
        as_json,
        fails=lambda found: bool(found["growing"]),
    )


@app.command("report")
def report_command(
    cases: Annotated[int, typer.Option(min=1, help="Cases of the large report.")] = 1000,
    opens: Annotated[int, typer.Option("--count", "-n", min=1, help="How often each report is opened.")] = 5,
    as_json: Json = False,
) -> None:
    """Time to write and to open reports of a run and of many cases, and their size."""
    _run(report.measure(cases=cases, opens=opens), _rows, as_json)


@app.command("sampling")
def sampling_command(
    seconds: Annotated[float, typer.Option(min=1, help="For each measure.")] = 10,
    rounds: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Rounds of the load, without and with samples.")
    ] = 5,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Cost of sampling disks and cgroups, for an idle guest and for one under load."""
    _run(sampling.measure(kernel=kernel, seconds=seconds, rounds=rounds), _rows, as_json)


@app.command("hardware")
def hardware_command(
    seconds: Annotated[float, typer.Option(min=1, help="For each measure.")] = 10,
    changes: Annotated[int, typer.Option(min=1, help="Changes of a limit under load.")] = 1000,
    kernel: Annotated[str, typer.Option(help="Kernel of the guests.")] = "debian-6.1",
    as_json: Json = False,
) -> None:
    """Limits and delays of emulated disks as a guest measures them, beside the values that were set."""
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
    names: Annotated[list[str] | None, typer.Argument(help="Bugs of topologies/bugs; all by default.")] = None,
    tries: Annotated[int, typer.Option("--tries", "-n", min=1, help="On each kernel.")] = 20,
    kernels: Annotated[str, typer.Option(help="Only on these kernels, separated by commas.")] = "",
    as_json: Json = False,
) -> None:
    """How often each bug of the museum shows on kernels that have it, and on those that do not: a Markdown table."""
    _run(
        museum.measure(tuple(names or ()), tuple(name for name in kernels.split(",") if name), tries),
        _markdown,
        as_json,
    )


@app.command("suites")
def suites_command(
    runs: Annotated[list[str], typer.Argument(help="Runs of `testbed suite`, on several kernels or several times.")],
) -> None:
    """The result of each test of a suite on each kernel, and which tests vary, from earlier runs: Markdown."""
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
    """Measure, print, and exit, with 1 if `fails` says so; a signal ends it as it ends every verb."""

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
