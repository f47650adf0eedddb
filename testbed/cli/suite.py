"""The verb that runs somebody else's shell tests: suite."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from testbed.api import open_testbed, suites
from testbed.api.blktests import Status, TestResult
from testbed.cli.app import KERNEL_HELP, Cold, Json, Quiet, TopologyOption, app, err, out, run_async
from testbed.cli.result_writer import run_kept
from testbed.host import paths
from testbed.report import live
from testbed.report.bugs import files as bug_files
from testbed.report.bugs import results, view
from testbed.report.partial import Partial
from testbed.store.kernels.table import shipped_table
from testbed.topology import Topology, load


@app.command()
def suite(
    checkout: Annotated[
        Path, typer.Argument(help="A checkout of blktests, or of a suite in its format, with its programs built.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(help="Groups (loop) or tests (loop/001); all without.", show_default=False)
    ] = None,
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", help=KERNEL_HELP)] = None,
    topology: TopologyOption = None,
    test_disk: Annotated[
        list[str] | None,
        typer.Option("--test-disk", help="A disk of the topology that tests may overwrite; repeatable."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for each test.")] = 300,
    quick: Annotated[
        int | None,
        typer.Option(
            min=1, help="Seconds for tests that run as long as they are told (TIMEOUT); their own time without it."
        ),
    ] = None,
    cold: Cold = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run somebody else's shell tests, each in a guest of its own, and say what each came to and why it was skipped."""
    wanted = suites.find_tests(checkout, tuple(names or ()))
    spec = kernel or shipped_table().patched
    guests = load(topology) if topology is not None else Topology.model_validate({"version": 1, "guests": {"g0": {}}})

    how = suites.SuiteOptions(
        topology=guests, kernel=spec, disks=tuple(test_disk or ()), timeout_s=timeout, quick_s=quick
    )
    suites.check_suite(how)

    async def work() -> int:
        with live.progress(err, quiet=quiet) as progress:
            async with open_testbed(kernels=(spec,), cold=cold, progress=progress) as testbed:
                files = await testbed.kernel(spec)
                folder = paths.new_run_folder(paths.folders().runs)
                began, done = time.monotonic(), dict[str, tuple[TestResult, ...]]()

                def document(why: str | None) -> dict[str, Any]:
                    partial = (
                        None
                        if why is None
                        else Partial(ended=len(done), wanted=len(wanted.tests), what="tests", why=why)
                    )
                    return results.suite_document(
                        testbed, wanted, files, in_order(), folder, sys.argv, time.monotonic() - began, partial
                    )

                def in_order() -> list[TestResult]:
                    return [one for test in wanted.tests for one in done.get(test, ())]

                def on_test(test: str, outcomes: tuple[TestResult, ...]) -> None:
                    for one in outcomes:
                        progress.note(_line(one))
                    done[test] = outcomes
                    keeper.update()

                with run_kept(folder, document, bug_files.write, progress.note) as keeper:
                    await suites.run_suite(testbed, wanted, how, folder / "guests", on_test)
                    complete = keeper.finished()
        verdict = view.VERDICTS[complete["result"]]
        if as_json:
            tests = [asdict(one) | {"status": one.status.value} for one in in_order()]
            print(json.dumps({"run": folder.name, "verdict": verdict, "kernel": spec, "tests": tests}))
        else:
            out.print(_table(in_order()))
            out.print(live.last_line(verdict, folder), markup=False, highlight=False, soft_wrap=True)
        return results.EXIT_CODES[complete["result"]]

    run_async(work())


def _line(one: TestResult) -> str:
    return f"{one.name}: {one.status.value}" + (f": {one.reason}" if one.reason else "")


def _table(done: Sequence[TestResult]) -> Table:
    table = Table("test", "status", "time", "reason", box=None, pad_edge=False)
    for one in done:
        said = "\n".join((one.reason, *one.details)) if one.status not in (Status.PASS, Status.SKIP) else one.reason
        table.add_row(escape(one.name), one.status.value, one.runtime, escape(said))
    return table
