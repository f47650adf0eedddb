"""Finds between which two kernels of a list a bug came or went, or asks one kernel for `git bisect run`: bisect."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from testbed.bugs import Case, bisect_search
from testbed.bugs.bisect import Bisector
from testbed.bugs.bisect_search import BisectAnswer, BisectRange
from testbed.bugs.repro import ReproJob
from testbed.cli import option_values
from testbed.cli.app import SKIP, Json, Quiet, app, err, out, run_async
from testbed.cli.bug_files import load_trusted
from testbed.cli.bug_options import BugFile, ErrorChance, Jobs, SearchOptions, make_job
from testbed.cli.kernels import (
    SOURCE_HELP,
    BuildOptions,
    Config,
    Flavours,
    Fragments,
    MakeArgs,
    Series,
    SeriesPatches,
    SeriesVersion,
    build_config,
    make_builder,
)
from testbed.cli.run_results import writing_results
from testbed.errors import BuildError, UsageError
from testbed.guest.factory import open_factory
from testbed.progress import Progress, Silent
from testbed.report import live
from testbed.report.bugs import files, results
from testbed.report.bugs.results import RunInfo
from testbed.report.bugs.schema import Bisect
from testbed.report.partial import Partial
from testbed.report.result_writer import ResultWriter
from testbed.store.kernels import folder_scan
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.folder_scan import FoundKernels
from testbed.store.kernels.table import shipped_table, short_name, split_files

# How many files of a folder that are no kernels are named on the terminal; all of them are in bisect.json.
_SHOWN_OTHERS = 12

Kernels = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        help="Names in order, with commas between, or a folder of .debs, or of bzImages and lib/modules; "
        "by default the table.",
    ),
]
Run = Annotated[
    str | None,
    typer.Option(
        "--run", help="Test only this kernel, for `git bisect run`: exits 0 if good, 1 if bad, 125 if unknown."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """Options that name the list of kernels and its ends, as they were given."""

    good: str | None
    bad: str | None
    kernels: str | None


@app.command("bisect")
def bisect_command(
    file: BugFile,
    good: Annotated[str | None, typer.Option("--good", help="A kernel on which the bug does not show.")] = None,
    bad: Annotated[
        str | None, typer.Option("--bad", help="A kernel on which it shows; before or after the good one.")
    ] = None,
    kernels: Kernels = None,
    run: Run = None,
    tree: Annotated[
        str | None,
        typer.Option("--tree", help=f"As --run, for a kernel that is built from this source first. {SOURCE_HELP}"),
    ] = None,
    series: Series = None,
    series_version: SeriesVersion = None,
    series_patches: SeriesPatches = None,
    flavour: Flavours = None,
    fragment: Fragments = None,
    config: Config = None,
    make_arg: MakeArgs = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", min=0.001, max=1, help="How often the bug shows; by default measured, or that of the file."
        ),
    ] = None,
    error: ErrorChance = 0.05,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find between which two kernels of an ordered list a bug appeared or disappeared. The number of tries on each
    depends on the bug's rate.

    Exits 0 with an answer, 2 if --good or --bad is wrong, 3 if the bug comes and goes along the list.
    """
    build = build_config(flavour, fragment, config, make_arg, series_version, series_patches)
    spec = BuildOptions(tree=tree, series=series, revert=None, config=build).spec()
    options = SearchOptions(file=file, error=error, jobs=jobs, as_json=as_json, quiet=quiet)
    listed = ListOptions(good=good, bad=bad, kernels=kernels)
    kernel = run or spec
    if kernel is None:
        _bisect(options, rate, listed)
    elif good or bad or kernels or (run is not None and spec is not None):
        raise UsageError(
            "bisect: --run or --tree asks one kernel; expected no --good, --bad and --kernels beside it, and not both"
        )
    else:
        _ask_one(options, rate, kernel)


def _bisect(options: SearchOptions, rate: float | None, listed: ListOptions) -> None:
    case = load_trusted(options.file)
    found = _find_kernels(listed.kernels)
    ends = BisectRange(
        good=_index(listed.good, found.kernels, "--good"), bad=_index(listed.bad, found.kernels, "--bad")
    )
    if ends.good == ends.bad:
        raise UsageError("bisect: expected two kernels with --good and --bad, got the same one twice")
    run_async(_BisectRun(options, case, rate, found, ends).run())


class _BisectRun:
    """One search in a list of kernels. `ends`: the places in the list where the bug does not show, and does."""

    def __init__(
        self, options: SearchOptions, case: Case, rate: float | None, listed: FoundKernels, ends: BisectRange
    ) -> None:
        self._options, self._case, self._rate, self._listed = options, case, rate, listed
        self._range = ends
        self._started = 0.0
        self._job: ReproJob
        self._bisector: Bisector
        self._progress: Progress
        self._writer: ResultWriter[Bisect]

    async def run(self) -> int:
        """Search, print the answer, and return the exit code."""
        kernels, ends = self._listed.kernels, self._range
        with contextlib.ExitStack() as stack:
            self._progress = stack.enter_context(live.progress(err, quiet=self._options.quiet))
            async with open_factory(self._progress, kernels=(kernels[ends.bad],)) as factory:
                self._started = time.monotonic()
                self._job = make_job(factory, self._case, self._options.jobs, lambda *_: self._writer.update())
                self._bisector = Bisector(self._job, factory.kernel, self._options.error, self._on_step)
                self._note_others()
                # The writer outlives the factory: results are complete once all guests are gone.
                self._writer = stack.enter_context(
                    writing_results(self._job.folder, self._document, files.write, self._progress.note)
                )
                self._range = await self._bisector.bisect(kernels, ends.good, ends.bad, self._rate)
            document = self._writer.finish_or_raise()
        if self._options.as_json:
            print(json.dumps(document.as_json()))
        else:
            for one in self._bisector.steps:
                out.print(f"{one.kernel}: {one.said}: {one.tried.words}", markup=False, highlight=False, soft_wrap=True)
            out.print(document.reason, markup=False, highlight=False, soft_wrap=True)
            print(self._job.folder)
        return results.EXIT_CODES[document.result]

    def _note_others(self) -> None:
        """Name files of the folder that are no kernels."""
        if others := self._listed.others:
            more = f" and {len(others) - _SHOWN_OTHERS} more" if len(others) > _SHOWN_OTHERS else ""
            self._progress.note(f"no kernels: {', '.join(others[:_SHOWN_OTHERS])}{more}")

    def _on_step(self, text: str) -> None:
        self._progress.note(text)
        self._writer.update()

    def _document(self, why: str | None) -> Bisect:
        """Return the results so far. `why`: the reason of an early end, "" while the run goes on; None if complete."""
        most = 2 + bisect_search.most_steps(self._range.good, self._range.bad)
        ended = len(self._bisector.steps)
        partial = None if why is None else Partial(ended=ended, wanted=most, at_most=True, what="kernels", why=why)
        run = RunInfo(command=sys.argv, took_s=time.monotonic() - self._started, partial=partial)
        listed = self._listed
        return results.bisect_document(self._job, listed.kernels, self._range, self._bisector, run, listed.others)


def _ask_one(options: SearchOptions, rate: float | None, kernel: str | BuildSpec) -> None:
    """Ask one kernel, and exit as `git bisect run` expects, which takes every code below 128 for a verdict: see
    `exit_code` for errors.
    """
    case = load_trusted(options.file)
    # Mistakes that are the same for every commit must not skip them all.
    if isinstance(kernel, BuildSpec):
        make_builder(Silent()).read(kernel)
    elif "/" not in kernel and split_files(kernel) is None:
        shipped_table().resolve(kernel)  # a name, and not a file that make would have made
    run_async(_AskRun(options, case, rate).run(kernel))


class _AskRun:
    """One kernel that is asked whether it shows the bug."""

    def __init__(self, options: SearchOptions, case: Case, rate: float | None) -> None:
        self._options, self._case, self._rate = options, case, rate
        self._started = 0.0
        self._name = ""
        self._job: ReproJob
        self._bisector: Bisector
        self._writer: ResultWriter[Bisect]

    async def run(self, kernel: str | BuildSpec) -> int:
        """Build the kernel if it has no name yet, ask it, and return the exit code for git."""
        try:
            answer = await self._ask(kernel)
        except (UsageError, BuildError) as failure:
            # A commit whose kernel is missing, or cannot be built, says nothing about the bug.
            err.print(f"testbed: {failure}", markup=False, highlight=False, soft_wrap=True)
            return SKIP
        return {BisectAnswer.GOOD: 0, BisectAnswer.BAD: 1, BisectAnswer.SKIP: SKIP}[answer]

    async def _ask(self, kernel: str | BuildSpec) -> BisectAnswer:
        options = self._options
        with live.progress(err, quiet=options.quiet) as progress:
            self._name = kernel if isinstance(kernel, str) else (await make_builder(progress).build(kernel)).name
            async with open_factory(progress) as factory:
                self._started = time.monotonic()
                self._job = make_job(factory, self._case, options.jobs, lambda *_: self._writer.update())
                self._bisector = Bisector(self._job, factory.kernel, options.error, progress.note)
                self._bisector.rate = self._rate
                with writing_results(self._job.folder, self._document, files.write, progress.note) as self._writer:
                    answer = await self._bisector.ask(self._name, options.error)
                    self._writer.finish_or_raise()
        return answer

    def _document(self, why: str | None) -> Bisect:
        ended = len(self._bisector.steps)
        partial = None if why is None else Partial(ended=ended, wanted=1, at_most=False, what="kernels", why=why)
        run = RunInfo(command=sys.argv, took_s=time.monotonic() - self._started, partial=partial)
        return results.ask_document(self._job, self._name, self._bisector, self._rate, run)


def _find_kernels(kernels: str | None) -> FoundKernels:
    """Return the kernels to search, in their order.

    :raise UsageError: one of them is no kernel, or there are fewer than two.
    """
    table = shipped_table()
    if kernels is None:
        return FoundKernels(kernels=tuple(table.rows), others=())
    folder = Path(kernels)
    if not folder.is_dir():
        named = option_values.kernel_names("--kernels", kernels)
        if len(named) == 1:
            raise UsageError(
                f"--kernels {kernels}: expected two kernels or more, with commas between, or a folder that is there"
            )
        for name in named:
            table.resolve(name)
        return FoundKernels(kernels=named, others=())
    found = folder_scan.scan_folder(folder)
    if len(found.kernels) < 2:
        others = f"; no kernels are {', '.join(found.others)}" if found.others else ""
        raise UsageError(
            f"--kernels {folder}: expected two packages with kernels, or files named bzImage or vmlinuz and a version, "
            f"or more, got {len(found.kernels)}{others}"
        )
    return found


def _index(name: str | None, kernels: tuple[str, ...], option: str) -> int:
    """Return the place of a kernel in the list; files of a folder go by their names.

    :raise UsageError: it is not in the list, or its name is there more than once.
    """
    if name is None:
        raise UsageError(f"bisect: expected {option} KERNEL, one of {', '.join(kernels)}")
    names = [short_name(kernel) for kernel in kernels]
    places = [
        number
        for number, kernel in enumerate(kernels)
        if name in (kernel, names[number], *map(str, (split_files(kernel) or ())[:1]))
    ]
    if len(places) != 1:
        raise UsageError(
            f"{option} {name}: expected one of {', '.join(names if len(set(names)) == len(names) else kernels)}"
        )
    return places[0]
