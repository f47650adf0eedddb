"""Checks topology and bug files, and shows what would be done with one: validate, plan."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from testbed.bugs.load import is_bug
from testbed.cli import bug_files
from testbed.cli.app import FAILED, app, err, run_async
from testbed.errors import Problem, TopologyError, UsageError
from testbed.host import paths
from testbed.qemu import probe
from testbed.report import topology_svg
from testbed.report.plan_text import describe_plan, describe_scripts
from testbed.store.kernels.table import shipped_table
from testbed.topology import Topology, load, load_points, trust
from testbed.topology.host_limits import HostLimits
from testbed.topology.kernel_abilities import KernelAbilities


@app.command()
def validate(files: Annotated[list[Path], typer.Argument(help="Topology or bug files.")]) -> None:
    """Check topology and bug files: prints all errors at once, each with file, line and column."""
    problems: list[Problem] = []
    notes: list[str] = []
    points = 0
    abilities = _abilities()
    for file in files:
        try:
            if is_bug(file):
                notes += bug_files.validate_bug(file, abilities.guest_mistakes)
                points += 1
                continue
            topologies = load_points(file, limits=HostLimits.of_this_host(), check_kernels=abilities.mistakes)
            points += len(topologies)
            notes += _default_kernel_notes(file, topologies.values())
            notes += [
                bug_files.untrusted_note(file, f"guests.{name}.qemu-args")
                for topology in topologies.values()
                for name, guest in topology.guests.items()
                if not trust.are_trusted(guest.qemu_args)
            ]
        except TopologyError as error:
            problems += error.problems
    for problem in problems:
        print(problem)
    for note in dict.fromkeys(notes):
        err.print(note, markup=False, highlight=False, soft_wrap=True)
    if problems:
        sys.exit(FAILED)
    err.print(f"{len(files)} valid" + (f", {points} topologies" if points > len(files) else ""), highlight=False)


def _abilities(default: str | None = None) -> KernelAbilities:
    """Return what the kernels in the cache can do. Fetches nothing: files can be checked where no guest could run."""
    return KernelAbilities(shipped_table(), paths.cache_folder(), default=default)


def _default_kernel_notes(file: Path, topologies: Iterable[Topology]) -> Iterator[str]:
    """Yield notes on what the default kernel of `up` lacks for topologies that name no kernel."""
    default = shipped_table().patched
    abilities = _abilities(default)
    for topology in topologies:
        for where, message in abilities.mistakes(topology):
            place = ".".join(map(str, where))
            yield f"note: {file}: {place}: {message}; it names no kernel, and {default} is what `up` takes then"


@app.command("plan")
def plan_command(
    file: Annotated[Path, typer.Argument(help="Topology or bug file.")],
    point: Annotated[
        str | None, typer.Option("--point", help="A point of its matrix, such as disk=nvme,filesystem=xfs.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw it into this file instead.")] = None,
) -> None:
    """Print what would be done, and run nothing: each guest's QEMU arguments, QMP commands in order, and steps in the
    guest.

    For a bug file: the same for the guest of a try, and the scripts that run in it.
    """
    case = bug_files.load_checked(file) if is_bug(file) else None
    if case is not None and point is not None:
        raise UsageError(f"--point {point}: a bug has one guest, and no matrix; expected no --point")

    async def work() -> int:
        if case is not None:
            topology = Topology(version=1, guests={"g0": case.guest})
        else:
            topology = load(file, point, limits=HostLimits.of_this_host(), check_kernels=_abilities().mistakes)
        if svg is not None:
            try:
                svg.write_text(topology_svg.svg(topology), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"--svg {svg}: cannot be written: {error.strerror}") from error
            return 0
        host = await probe.probe(paths.folders().cache, None)
        for name, model in topology.guests.items():
            print("\n".join(describe_plan(host, name, model, topology.links[name])))
        if case is not None:
            print("\n".join(describe_scripts(case)))
        return 0

    run_async(work())
