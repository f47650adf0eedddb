"""Runs shell tests in the format of blktests, each in its own guest: suite."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from testbed.api import Testbed, open_testbed, suites
from testbed.api.blktests import Status, TestResult
from testbed.api.suites import Suite, SuiteOptions
from testbed.cli.app import KERNEL_HELP, Cold, Json, Quiet, TopologyOption, app, err, out, run_async
from testbed.cli.run_results import writing_results
from testbed.host import paths
from testbed.progress import Progress
from testbed.report import live
from testbed.report.bugs import files as bug_files
from testbed.report.bugs import results, view
from testbed.report.bugs.results import RunInfo
from testbed.report.bugs.schema import Suite as SuiteDocument
from testbed.report.partial import Partial
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import shipped_table
from testbed.topology import Topology, load


@app.command()
def suite(
    checkout: Annotated[
        Path, typer.Argument(help="A checkout of blktests, or of a suite in its format, with its programs built.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(help="Groups (loop) or tests (loop/001); all by default.", show_default=False)
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
        typer.Option(min=1, help="Seconds for tests with an adjustable run time (TIMEOUT); by default their own."),
    ] = None,
    cold: Cold = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run shell tests of another project, each in its own guest, and report each result and why tests were skipped."""
    spec = kernel or shipped_table().patched
    found = suites.find_tests(checkout, tuple(names or ()))
    guests = load(topology) if topology is not None else Topology.model_validate({"version": 1, "guests": {"g0": {}}})
    how = SuiteOptions(topology=guests, kernel=spec, disks=tuple(test_disk or ()), timeout_s=timeout, quick_s=quick)
    suites.check_suite(how)
    run_async(_run(found, how, OutputOptions(cold=cold, as_json=as_json, quiet=quiet)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How the command starts guests and prints; see the options of these names."""

    cold: bool
    as_json: bool
    quiet: bool


async def _run(suite: Suite, how: SuiteOptions, options: OutputOptions) -> int:
    with live.progress(err, quiet=options.quiet) as progress:
        async with open_testbed(kernels=(how.kernel,), cold=options.cold, progress=progress) as testbed:
            execution = _Execution(suite, testbed, await testbed.kernel(how.kernel))
            document = await execution.run(how, progress)
    tests, verdict = execution.results(), view.VERDICTS[document.result]
    if options.as_json:
        rows = [asdict(test) | {"status": test.status.value} for test in tests]
        print(json.dumps({"run": execution.folder.name, "verdict": verdict, "kernel": how.kernel, "tests": rows}))
    else:
        out.print(_table(tests))
        out.print(live.last_line(verdict, execution.folder), markup=False, highlight=False, soft_wrap=True)
    return results.EXIT_CODES[document.result]


class _Execution:
    """Runs the tests of a suite, and keeps the results in the run's folder up to date."""

    def __init__(self, suite: Suite, testbed: Testbed, kernel: KernelFiles) -> None:
        self._suite, self._testbed, self._kernel = suite, testbed, kernel
        self._done: dict[str, tuple[TestResult, ...]] = {}
        self._started = time.monotonic()
        self.folder = paths.new_run_folder(paths.folders().runs)

    async def run(self, how: SuiteOptions, progress: Progress) -> SuiteDocument:
        """Return the complete document of the results."""
        with writing_results(self.folder, self._document, bug_files.write, progress.note) as writer:

            def on_test(test: str, outcomes: tuple[TestResult, ...]) -> None:
                for outcome in outcomes:
                    progress.note(_line(outcome))
                self._done[test] = outcomes
                writer.update()

            await suites.run_suite(self._testbed, self._suite, how, self.folder / "guests", on_test)
            return writer.finish_or_raise()

    def results(self) -> list[TestResult]:
        """Return the results so far, in the order of the suite."""
        return [result for test in self._suite.tests for result in self._done.get(test, ())]

    def _document(self, why: str | None) -> SuiteDocument:
        total = len(self._suite.tests)
        ended = len(self._done)
        partial = None if why is None else Partial(ended=ended, wanted=total, at_most=False, what="tests", why=why)
        run = RunInfo(command=sys.argv, took_s=time.monotonic() - self._started, partial=partial)
        return results.suite_document(self._testbed, self._suite, self._kernel, self.results(), self.folder, run)


def _line(test: TestResult) -> str:
    return f"{test.name}: {test.status.value}" + (f": {test.reason}" if test.reason else "")


def _table(tests: Sequence[TestResult]) -> Table:
    table = Table("test", "status", "time", "reason", box=None, pad_edge=False)
    for test in tests:
        details = () if test.status in (Status.PASS, Status.SKIP) else test.details
        table.add_row(escape(test.name), test.status.value, test.runtime, escape("\n".join((test.reason, *details))))
    return table
