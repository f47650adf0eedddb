"""Verbs that ask a bug many questions: reduce, bisect."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.bugs import Case, bisect, reduce
from testbed.bugs.bisect import BisectAnswer, BisectRange
from testbed.bugs.load import self_contained, to_yaml
from testbed.bugs.reduce import Bisector, Reducer
from testbed.bugs.repro import OnTry, ReproJob, StopRule
from testbed.cli import sizes
from testbed.cli.app import KERNEL_HELP, SKIP, Json, Quiet, app, err, out, run_async
from testbed.cli.bug_files import ready
from testbed.cli.kernels import (
    SOURCE_HELP,
    Config,
    Flavours,
    Fragments,
    MakeArgs,
    Series,
    SeriesPatches,
    SeriesVersion,
    builder,
    configured,
    nothing_built,
)
from testbed.cli.result_writer import run_kept
from testbed.errors import BuildError, UsageError
from testbed.guest.factory import GuestFactory, open_factory
from testbed.host import paths
from testbed.progress import Silent
from testbed.report import live
from testbed.report.bugs import files, results
from testbed.report.partial import Partial
from testbed.store.kernels import folder_scan
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.folder_scan import FoundKernel
from testbed.store.kernels.table import file_name, files_of, shipped_table

# So many files of a folder that are no kernels are named on the terminal; all of them are in bisect.json.
_NAMED = 12

BugFile = Annotated[Path, typer.Argument(help="Bug file.")]
Error = Annotated[float, typer.Option("--error", min=0.0001, max=0.3, help="The chance of a wrong answer.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Guests at once; as many as fit without it.")]


@app.command("reduce")
def reduce_command(
    file: BugFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the smaller bug goes; FILE.reduced.yaml without it.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option("--kernel", "-k", help=f"The first where it shows without it. {KERNEL_HELP}")
    ] = None,
    tries: Annotated[int, typer.Option("--tries", "-n", min=1, help="For its rate as it is.")] = reduce.MEASURED_TRIES,
    error: Error = 0.05,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Drop disks, loops, timeline steps, limits, memory and CPUs from a bug's guest while it shows as often; write the smaller bug.

    Exits 0 with a file, 1 where the bug does not show as it is.
    """
    case = ready(file)
    spec = kernel or _first_shown(file, case)
    target = output or file.with_suffix(".reduced.yaml")
    # And not after minutes of guests.
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--output {target}: expected a place in a folder that exists")
    if target.is_dir():
        raise UsageError(f"--output {target}: expected a file, got a folder")
    if target.exists() and target.samefile(file):
        raise UsageError(f"--output {target}: expected another file than that of the bug itself")

    async def work() -> int:
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(live.progress(err, quiet=quiet))
            async with open_factory(progress, kernels=(spec,)) as factory:
                found, begun = await factory.kernel(spec), time.monotonic()

                def document(why: str | None) -> dict[str, Any]:
                    so_far = reducer.so_far
                    partial = (
                        None
                        if why is None
                        else Partial(ended=len(so_far.steps), wanted=None, what="candidates", why=why)
                    )
                    origin = (
                        f"Reduced from {file.name} by {so_far.guests} guests on {spec}; as it was: {so_far.whole.rate}"
                    )
                    head = f"yaml-language-server: $schema=schema.json\n{origin}"
                    smaller = to_yaml(so_far.plain, head) if so_far.plain is not None else ""
                    return results.reduce_document(job, so_far, smaller, sys.argv, time.monotonic() - begun, partial)

                def on_step(text: str) -> None:
                    progress.note(text)
                    keeper.update()

                job = _job(factory, case, jobs, lambda *_: keeper.update())
                reducer = Reducer(job, found, error, on_step)
                keeper = stack.enter_context(run_kept(job.folder, document, files.write, progress.note))
                await reducer.reduce(self_contained(file), tries)
            complete = keeper.finished()
            if smaller := complete["smaller"]:
                _write(smaller, target)
        if as_json:
            print(json.dumps(complete | {"reduced": str(target) if smaller else None}))
        else:
            left = f"; the smaller bug is {target}" if smaller else ""
            out.print(complete["reason"], markup=False, highlight=False, soft_wrap=True)
            out.print(f"{complete['guests']} guests{left}", markup=False, highlight=False, soft_wrap=True)
            print(job.folder)
        return results.EXIT_CODES[complete["result"]]

    run_async(work())


def _write(smaller: str, target: Path) -> None:
    try:
        target.write_text(smaller, encoding="utf-8")
    except OSError as failure:
        raise UsageError(f"--output {target}: cannot be written: {failure.strerror}") from failure


@app.command("bisect")
def bisect_command(
    file: BugFile,
    good: Annotated[str | None, typer.Option("--good", help="A kernel where it does not show.")] = None,
    bad: Annotated[str | None, typer.Option("--bad", help="One where it does; before or after the good one.")] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            "--kernels",
            help="Names in order, with commas between, or a folder of .debs, or of bzImages and lib/modules; the table without it.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Ask this kernel alone, for `git bisect run`: exits 0 good, 1 bad, 125 it cannot be told."
        ),
    ] = None,
    tree: Annotated[
        str | None, typer.Option("--tree", help=f"As --run, for a kernel that is built first. {SOURCE_HELP}")
    ] = None,
    series: Series = None,
    series_version: SeriesVersion = None,
    series_patches: SeriesPatches = None,
    flavour: Flavours = None,
    fragment: Fragments = None,
    config: Config = None,
    make_arg: MakeArgs = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, max=1, help="How often it shows; measured, or the file's.")
    ] = None,
    error: Error = 0.05,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find between which kernels of an ordered list a bug came, or went; each is tried as often as the bug's rate needs.

    Exits 0 with an answer, 2 where an end is not as it was said to be, 3 where the bug comes and goes along the list.
    """
    more = configured(flavour, fragment, config, make_arg, series_version, series_patches)
    if tree is None:
        nothing_built((series,), more)
    if run is not None or tree is not None:
        if good or bad or kernels or (run is not None and tree is not None):
            raise UsageError(
                "bisect: --run or --tree asks one kernel; expected no --good, --bad and --kernels beside it, and not both"
            )
        spec = replace(more, source=str(tree), series=tuple(series or ()))
        _ask_one(file, run or spec, rate, error, jobs, quiet)
        return
    case = ready(file)
    listed = _list(kernels)
    every = listed.kernels
    ends = {"--good": _place(good, every, "--good"), "--bad": _place(bad, every, "--bad")}
    if ends["--good"] == ends["--bad"]:
        raise UsageError("bisect: expected two kernels with --good and --bad, got the same one twice")

    async def work() -> int:
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(live.progress(err, quiet=quiet))
            async with open_factory(progress, kernels=(every[ends["--bad"]],)) as factory:
                begun, found = time.monotonic(), BisectRange(good=ends["--good"], bad=ends["--bad"])

                def document(why: str | None) -> dict[str, Any]:
                    most = 2 + bisect.most_steps(found.good, found.bad)
                    partial = (
                        None
                        if why is None
                        else Partial(ended=len(bisector.asked), wanted=most, at_most=True, what="kernels", why=why)
                    )
                    return results.bisect_document(
                        job, every, found, bisector, sys.argv, time.monotonic() - begun, partial, listed.others
                    )

                def on_step(text: str) -> None:
                    progress.note(text)
                    keeper.update()

                job = _job(factory, case, jobs, lambda *_: keeper.update())
                bisector = Bisector(job, factory.kernel, error, on_step)
                if listed.others:
                    more = f" and {len(listed.others) - _NAMED} more" if len(listed.others) > _NAMED else ""
                    progress.note(f"no kernels: {', '.join(listed.others[:_NAMED])}{more}")
                keeper = stack.enter_context(run_kept(job.folder, document, files.write, progress.note))
                found = await bisector.bisect(every, found.good, found.bad, rate)
            complete = keeper.finished()
        if as_json:
            print(json.dumps(complete))
        else:
            for one in bisector.asked:
                out.print(f"{one.kernel}: {one.said}: {one.tried.words}", markup=False, highlight=False, soft_wrap=True)
            out.print(complete["reason"], markup=False, highlight=False, soft_wrap=True)
            print(job.folder)
        return results.EXIT_CODES[complete["result"]]

    run_async(work())


def _ask_one(
    file: Path, wanted: str | BuildSpec, rate: float | None, error: float, jobs: int | None, quiet: bool
) -> None:
    """One kernel, with the exit codes of `git bisect run`, to which every number below 128 is a verdict (`exit_code` sees to errors)."""
    case = ready(file)
    # What is the same for every commit would skip them all.
    if isinstance(wanted, BuildSpec):
        builder(Silent()).read(wanted)
    elif "/" not in wanted and files_of(wanted) is None:
        shipped_table().resolve(wanted)  # a name, and no file that make would have made

    async def work() -> int:
        try:
            with live.progress(err, quiet=quiet) as progress:
                spec = wanted if isinstance(wanted, str) else (await builder(progress).build(wanted)).name
                async with open_factory(progress) as factory:
                    begun = time.monotonic()

                    def document(why: str | None) -> dict[str, Any]:
                        partial = (
                            None
                            if why is None
                            else Partial(ended=len(bisector.asked), wanted=1, what="kernels", why=why)
                        )
                        return results.ask_document(
                            job, spec, bisector, rate, sys.argv, time.monotonic() - begun, partial
                        )

                    job = _job(factory, case, jobs, lambda *_: keeper.update())
                    bisector = Bisector(job, factory.kernel, error, progress.note)
                    bisector.rate = rate
                    with run_kept(job.folder, document, files.write, progress.note) as keeper:
                        answer = await bisector.ask(spec, error)
                        keeper.finished()
        except (UsageError, BuildError) as failure:
            # A commit whose kernel was not built, cannot be, or is none, says nothing about the bug.
            err.print(f"testbed: {failure}", markup=False, highlight=False, soft_wrap=True)
            return SKIP
        return {BisectAnswer.GOOD: 0, BisectAnswer.BAD: 1, BisectAnswer.SKIP: SKIP}[answer]

    run_async(work())


def _job(factory: GuestFactory, case: Case, jobs: int | None, on_try: OnTry) -> ReproJob:
    limits = StopRule(tries=case.bug.tries, timeout_s=case.bug.timeout_s, jobs=jobs)
    folder = paths.new_run_folder(factory.folders.runs)
    return ReproJob(
        factory=factory, case=case, limits=limits, seed=secrets.randbelow(1 << 31), folder=folder, on_try=on_try
    )


def _first_shown(file: Path, case: Case) -> str:
    if not case.bug.kernels.shows:
        raise UsageError(f"{file}: it names no kernel where it shows; name one with --kernel")
    return case.bug.kernels.shows[0]


def _list(kernels: str | None) -> FoundKernel:
    """The kernels to walk, in their order.

    :raise UsageError: one of them is none.
    """
    table = shipped_table()
    if kernels is None:
        return FoundKernel(kernels=tuple(table.rows), others=())
    folder = Path(kernels)
    if not folder.is_dir():
        named = sizes.names("--kernels", kernels)
        if len(named) == 1:
            raise UsageError(
                f"--kernels {kernels}: expected two kernels or more, with commas between, or a folder that is there"
            )
        for name in named:
            table.resolve(name)
        return FoundKernel(kernels=named, others=())
    found = folder_scan.scan_folder(folder)
    if len(found.kernels) < 2:
        others = f"; no kernels are {', '.join(found.others)}" if found.others else ""
        raise UsageError(
            f"--kernels {folder}: expected two packages with kernels, or files named bzImage or vmlinuz and a version, or more, "
            f"got {len(found.kernels)}{others}"
        )
    return found


def _place(name: str | None, every: tuple[str, ...], option: str) -> int:
    """Where a kernel stands in the list; files of a folder go by their names."""
    if name is None:
        raise UsageError(f"bisect: expected {option} KERNEL, one of {', '.join(every)}")
    names = [file_name(one) for one in every]
    found = [
        number for number, one in enumerate(every) if name in (one, names[number], *map(str, (files_of(one) or ())[:1]))
    ]
    if len(found) != 1:
        raise UsageError(
            f"{option} {name}: expected one of {', '.join(names if len(set(names)) == len(names) else every)}"
        )
    return found[0]
