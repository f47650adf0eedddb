"""Verbs that look and change nothing: doctor, validate, plan, scenarios."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from testbed import errors
from testbed.bugs.load import is_bug
from testbed.cli import bug_files, doctor
from testbed.cli.app import ERROR, FAILED, Json, app, err, out, run_async
from testbed.errors import HostError, Problem, TopologyError, UsageError
from testbed.host import paths, process
from testbed.host.facts import Host, to_document
from testbed.qemu import probe
from testbed.report import docs, tables, topology_svg
from testbed.report.plan_text import describe_plan, describe_scripts
from testbed.scenarios.catalogue import SCENARIOS, cases
from testbed.store.kernels import kernel_files
from testbed.store.kernels.table import shipped_table
from testbed.topology import Topology, load, load_points, trust
from testbed.topology.host_limits import HostLimits
from testbed.topology.kernel_abilities import KernelAbilities


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """What this host can do, what is missing, and how to mend it."""

    async def work() -> int:
        folders = paths.folders()
        host: Host | None = None
        why = ""
        try:
            known = shipped_table()
            kernels = (kernel_files.cached_kernel(row, folders.cache) for row in known.rows.values())
            host = await probe.probe(folders.cache, next((found for found in kernels if found), None))
        except HostError as error:
            why = str(error)
        complaints = await doctor.complaints(host)
        fatal = [complaint for complaint in complaints if complaint.fatal]
        if as_json:
            facts = to_document(host) if host else None
            print(
                json.dumps(
                    {
                        "host": facts,
                        "tools": process.find_all(),
                        "problems": [asdict(c) for c in complaints],
                        "error": why or None,
                    }
                )
            )
        else:
            if host is not None:
                out.print(tables.host_table(host, process.find_all()))
            else:
                out.print(why, markup=False, highlight=False)
            for complaint in complaints:
                kind = "problem" if complaint.fatal else "warning"
                out.print(
                    f"{kind}: {complaint.what}\n    mend: {complaint.mend}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
            if not fatal and host is not None:
                out.print("This machine can run the testbed.")
        return ERROR if fatal or host is None else 0

    run_async(work())


@app.command()
def validate(files: Annotated[list[Path], typer.Argument(help="Topology or bug files.")]) -> None:
    """Check topology and bug files: all errors at once, each with file, line and column."""
    problems: list[Problem] = []
    notes: list[str] = []
    points = 0
    abilities = _abilities()
    for file in files:
        try:
            if is_bug(file):
                notes += bug_files.validated(file, abilities.of_all)
                points += 1
                continue
            found = load_points(file, limits=HostLimits.of_this_host(), check_kernels=abilities.mistakes)
            points += len(found)
            notes += _not_by_default(file, found.values())
            notes += [
                bug_files.untrusted(file, f"guests.{name}.qemu-args")
                for topology in found.values()
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
    """What the kernels in the cache can do. Makes nothing: a file can be looked at where no guest could run."""
    return KernelAbilities(shipped_table(), paths.cache_folder(), default=default)


def _not_by_default(file: Path, topologies: Iterable[Topology]) -> Iterator[str]:
    """What of topologies that name no kernel the one that `up` takes then cannot do."""
    default = shipped_table().patched
    abilities = _abilities(default)
    for topology in topologies:
        for where, said in abilities.mistakes(topology):
            yield f"note: {file}: {'.'.join(map(str, where))}: {said}; it names no kernel, and {default} is what `up` takes then"


@app.command("plan")
def plan_command(
    file: Annotated[Path, typer.Argument(help="Topology or bug file.")],
    point: Annotated[
        str | None, typer.Option("--point", help="A point of its matrix, such as disk=nvme,filesystem=xfs.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw it into this file instead.")] = None,
) -> None:
    """Print what would be done: each guest's QEMU argv, its ordered QMP commands, and the steps inside it; runs nothing.

    Of a bug: for the guest of each of its tries, and what runs there then.
    """
    case = bug_files.planned(file) if is_bug(file) else None
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


@app.command("errors")
def errors_command(
    code: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="One of them, such as TB410.", show_default=False)
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The whole catalogue, as docs/errors.md has it.")
    ] = False,
) -> None:
    """What an error's code means, who must act, and how."""
    if markdown:
        print(docs.errors_markdown(), end="")
        return
    found = [kind for kind in errors.flatten() if code is None or code.upper() == kind.code]
    if not found:
        raise UsageError(f"errors {code}: expected one of {', '.join(kind.code for kind in errors.flatten())}")
    for kind in found:
        print(f"{kind.code}\t{kind.__name__}\t{kind.who}: {kind.act}")


@app.command("scenarios")
def scenarios_command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The whole catalogue, as docs/scenarios.md has it.")
    ] = False,
) -> None:
    """List the scenarios and the points at which each is tried."""
    if markdown:
        print(docs.scenarios_markdown(tuple(SCENARIOS.values())), end="")
        return
    for name, case in cases().items():
        print(f"{name}\t{case.scenario.claim}")
