"""The verb that runs somebody else's shell tests: suite."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from testbed import paths, suites
from testbed.api import open_testbed
from testbed.blktests import Outcome, Status
from testbed.cli.app import ERROR, FAILED, KERNEL_HELP, Cold, Json, Quiet, TopologyOption, app, err, out, run_async, run_going_on
from testbed.kernels import load_table
from testbed.report import live
from testbed.topology import Topology, load
from testbed.verdict import Verdict

_WORDS = {
    Status.PASS: Verdict.PASS,
    Status.FAIL: Verdict.FAIL,
    Status.HANG: Verdict.FAIL,
    Status.LOST: Verdict.FAIL,
    Status.SKIP: Verdict.SKIP,
    Status.ERROR: Verdict.INFRA,
}
_EXITS = {Verdict.PASS: 0, Verdict.FAIL: FAILED, Verdict.INFRA: ERROR, Verdict.SKIP: 4}


@app.command()
def suite(
    checkout: Annotated[Path, typer.Argument(help="A checkout of blktests, or of a suite in its format, with its programs built.")],
    names: Annotated[list[str] | None, typer.Argument(help="Groups (loop) or tests (loop/001); all without.", show_default=False)] = None,
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", help=KERNEL_HELP)] = None,
    topology: TopologyOption = None,
    test_disk: Annotated[
        list[str] | None, typer.Option("--test-disk", help="A disk of the topology that tests may overwrite; repeatable.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for each test.")] = 300,
    quick: Annotated[
        int | None, typer.Option(min=1, help="Seconds for tests that run as long as they are told (TIMEOUT); their own time without it.")
    ] = None,
    cold: Cold = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run somebody else's shell tests, each in a guest of its own, and say what each came to and why it was skipped."""
    wanted = suites.found(checkout, tuple(names or ()))
    spec = kernel or load_table(paths.shipped("images") / "kernels.yaml").patched
    guests = load(topology) if topology is not None else Topology.model_validate({"version": 1, "guests": {"g0": {}}})

    async def work() -> int:
        folder = paths.new_run_folder(paths.folders().runs)
        with run_going_on(folder), live.progress(err, quiet=quiet) as progress:
            async with open_testbed(kernels=(spec,), cold=cold, progress=progress) as testbed:
                done = await suites.run(
                    testbed,
                    wanted,
                    suites.How(
                        topology=guests,
                        kernel=spec,
                        disks=tuple(test_disk or ()),
                        timeout_s=timeout,
                        quick_s=quick,
                        evidence=folder / "guests",
                    ),
                    lambda one: progress.note(_line(one)),
                )
        verdict = _verdict(done)
        if as_json:
            tests = [asdict(one) | {"status": one.status.value} for one in done]
            print(json.dumps({"run": folder.name, "verdict": verdict.value, "kernel": spec, "tests": tests}))
        else:
            out.print(_table(done))
            out.print(f"verdict: {verdict.value} {folder}", highlight=False, soft_wrap=True)
        return _EXITS[verdict]

    run_async(work())


def _verdict(done: tuple[Outcome, ...]) -> Verdict:
    """The gravest; SKIP only where everything was skipped."""
    found = {_WORDS[one.status] for one in done}
    return next(one for one in (Verdict.FAIL, Verdict.INFRA, Verdict.PASS, Verdict.SKIP) if one in found)


def _line(one: Outcome) -> str:
    return f"{one.name}: {one.status.value}" + (f": {one.reason}" if one.reason else "")


def _table(done: tuple[Outcome, ...]) -> Table:
    table = Table("test", "status", "time", "reason", box=None, pad_edge=False)
    for one in done:
        said = "\n".join((one.reason, *one.details)) if one.status not in (Status.PASS, Status.SKIP) else one.reason
        table.add_row(escape(one.name), one.status.value, one.runtime, escape(said))
    return table
