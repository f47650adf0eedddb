"""Makes a bug's guest smaller while the bug shows as often: reduce."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from testbed.bugs import Case, reduce
from testbed.bugs.load import self_contained, to_yaml
from testbed.bugs.reduce import Reducer
from testbed.bugs.repro import ReproJob
from testbed.cli.app import KERNEL_HELP, Json, Quiet, app, err, out, run_async
from testbed.cli.bug_files import load_trusted
from testbed.cli.bug_options import BugFile, ErrorChance, Jobs, SearchOptions, make_job
from testbed.cli.run_results import writing_results
from testbed.errors import UsageError
from testbed.guest.factory import open_factory
from testbed.progress import Progress
from testbed.report import live
from testbed.report.bugs import files, results
from testbed.report.bugs.results import RunInfo
from testbed.report.bugs.schema import Reduce
from testbed.report.partial import Partial
from testbed.report.result_writer import ResultWriter


@app.command("reduce")
def reduce_command(
    file: BugFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file for the smaller bug; FILE.reduced.yaml by default.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option("--kernel", "-k", help=f"By default the first on which the bug shows. {KERNEL_HELP}")
    ] = None,
    tries: Annotated[
        int, typer.Option("--tries", "-n", min=1, help="Tries for the rate of the original bug.")
    ] = reduce.MEASURED_TRIES,
    error: ErrorChance = 0.05,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove disks, loops, timeline steps, limits, memory and CPUs from a bug's guest while the bug shows as often, and
    write the smaller bug.

    Exits 0 if it wrote a file, 1 if the original bug does not show.
    """
    options = SearchOptions(file=file, error=error, jobs=jobs, as_json=as_json, quiet=quiet)
    case = load_trusted(file)
    name = kernel or _first_shown(file, case)
    target = output or file.with_suffix(".reduced.yaml")
    _check_target(target, file)
    run_async(_ReduceRun(options, case, name, tries).run(target))


def _first_shown(file: Path, case: Case) -> str:
    """:raise UsageError: the bug names no kernel where it shows."""
    if not case.bug.kernels.shows:
        raise UsageError(f"{file}: it names no kernel where it shows; name one with --kernel")
    return case.bug.kernels.shows[0]


def _check_target(target: Path, file: Path) -> None:
    """Check where the smaller bug goes now, and not after minutes of guests.

    :raise UsageError: it cannot be written there.
    """
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--output {target}: expected a place in a folder that exists")
    if target.is_dir():
        raise UsageError(f"--output {target}: expected a file, got a folder")
    if target.exists() and target.samefile(file):
        raise UsageError(f"--output {target}: expected another file than that of the bug itself")


class _ReduceRun:
    """One run of `reduce` on the kernel `name`; `tries`: for the rate of the bug as it is."""

    def __init__(self, options: SearchOptions, case: Case, name: str, tries: int) -> None:
        self._options, self._case, self._name, self._tries = options, case, name, tries
        self._started = 0.0
        self._job: ReproJob
        self._reducer: Reducer
        self._progress: Progress
        self._writer: ResultWriter[Reduce]

    async def run(self, target: Path) -> int:
        """Reduce the bug, write the smaller one, and return the exit code."""
        options = self._options
        with contextlib.ExitStack() as stack:
            self._progress = stack.enter_context(live.progress(err, quiet=options.quiet))
            async with open_factory(self._progress, kernels=(self._name,)) as factory:
                kernel = await factory.kernel(self._name)
                self._started = time.monotonic()
                self._job = make_job(factory, self._case, options.jobs, lambda *_: self._writer.update())
                self._reducer = Reducer(self._job, kernel, options.error, self._on_step)
                # The writer outlives the factory: results are complete once all guests are gone.
                self._writer = stack.enter_context(
                    writing_results(self._job.folder, self._document, files.write, self._progress.note)
                )
                await self._reducer.reduce(self_contained(options.file), self._tries)
            document = self._writer.finish_or_raise()
            if smaller := document.smaller:
                _write(smaller, target)
        if options.as_json:
            print(json.dumps(document.as_json() | {"reduced": str(target) if smaller else None}))
        else:
            left = f"; the smaller bug is {target}" if smaller else ""
            out.print(document.reason, markup=False, highlight=False, soft_wrap=True)
            out.print(f"{document.guests} guests{left}", markup=False, highlight=False, soft_wrap=True)
            print(self._job.folder)
        return results.EXIT_CODES[document.result]

    def _on_step(self, text: str) -> None:
        self._progress.note(text)
        self._writer.update()

    def _document(self, why: str | None) -> Reduce:
        """Return the results so far. `why`: the reason of an early end, "" while the run goes on; None if complete."""
        so_far = self._reducer.so_far
        partial = Partial(ended=len(so_far.steps), wanted=None, at_most=False, what="candidates", why=why or "")
        origin = (
            f"Reduced from {self._options.file.name} by {so_far.guests} guests on {self._name}; "
            f"as it was: {so_far.whole.rate}"
        )
        head = f"yaml-language-server: $schema=schema.json\n{origin}"
        smaller = to_yaml(so_far.plain, head) if so_far.plain is not None else ""
        run = RunInfo(
            command=sys.argv, took_s=time.monotonic() - self._started, partial=None if why is None else partial
        )
        return results.reduce_document(self._job, so_far, smaller, run)


def _write(smaller: str, target: Path) -> None:
    try:
        target.write_text(smaller, encoding="utf-8")
    except OSError as failure:
        raise UsageError(f"--output {target}: cannot be written: {failure.strerror}") from failure
