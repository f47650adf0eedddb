"""Verbs that ask a bug many questions: reduce, bisect."""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed import campaign, paths, probe
from testbed.bisection import Answer, Between
from testbed.bugs import Case, load
from testbed.bugs.load import self_contained, written
from testbed.campaign import Bisector, Reducer
from testbed.cli.app import KERNEL_HELP, Json, Quiet, app, err, out, run_async
from testbed.errors import TestbedError, TopologyError, UsageError
from testbed.kernels import load_table
from testbed.lab import Lab, open_lab
from testbed.report import live
from testbed.repro import Job, Limits
from testbed.store import runs

BugFile = Annotated[Path, typer.Argument(help="Bug file.")]
Error = Annotated[float, typer.Option("--error", min=0.0001, max=0.3, help="The chance of a wrong answer.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Guests at once; as many as fit without it.")]
# What `git bisect run` makes of an exit code: 125 skips, 128 and more stop it.
_SKIP, _ABORT = 125, 255


@app.command("reduce")
def reduce_command(
    file: BugFile,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the smaller bug goes; FILE.reduced.yaml without it.")] = None,
    kernel: Annotated[str | None, typer.Option("--kernel", "-k", help=f"The first where it shows without it. {KERNEL_HELP}")] = None,
    tries: Annotated[int, typer.Option("--tries", "-n", min=1, help="For its rate as it is.")] = campaign.MEASURED_TRIES,
    error: Error = 0.05,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Drop disks, loops, timeline steps, limits, memory and CPUs from a bug's guest while it shows as often; write the smaller bug.

    Exits 0 with a file, 1 where the bug does not show as it is.
    """
    case = load(file, host_memory=probe.host_memory())
    spec = kernel or _first_shown(file, case)
    target = output or file.with_suffix(".reduced.yaml")

    async def work() -> int:
        with live.progress(err, quiet=quiet) as progress:
            async with open_lab(progress, kernels=(spec,)) as lab:
                job = _job(lab, case, jobs)
                with runs.going_on(job.folder):
                    found = await Reducer(job, await lab.kernel(spec), error, progress.note).reduce(self_contained(file), tries)
        if found is None:
            print(json.dumps({"reduced": None})) if as_json else out.print(f"it does not show on {spec} as it is", highlight=False)
            return 1
        origin = f"Reduced from {file.name} by {found.guests} guests on {spec}; as it was: {found.rate}"
        head = f"yaml-language-server: $schema=schema.json\n{origin}"
        try:
            target.write_text(written(found.plain, head))
        except OSError as failure:
            raise UsageError(f"--output {target}: cannot be written: {failure.strerror}") from failure
        if as_json:
            rate = {"hits": found.rate.hits, "tries": found.rate.tries}
            print(json.dumps({"reduced": str(target), "dropped": found.dropped, "guests": found.guests, "rate": rate}))
        else:
            said = ", ".join(found.dropped) or "nothing: each part is needed"
            out.print(f"dropped: {said}", markup=False, highlight=False, soft_wrap=True)
            out.print(f"{found.guests} guests; the smaller bug is {target}", markup=False, highlight=False, soft_wrap=True)
        return 0

    run_async(work())


@app.command("bisect")
def bisect_command(
    file: BugFile,
    good: Annotated[str | None, typer.Option("--good", help="A kernel where it does not show.")] = None,
    bad: Annotated[str | None, typer.Option("--bad", help="One where it does; before or after the good one.")] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            "--kernels", help="Names in their order, with commas between, or a folder of .debs or bzImages; the table without it."
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Ask this kernel alone, for `git bisect run`: exits 0 good, 1 bad, 125 it cannot be told.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, max=1, help="How often it shows; measured, or the file's.")] = None,
    error: Error = 0.05,
    jobs: Jobs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find between which kernels of an ordered list a bug came, or went; each is tried as often as the bug's rate needs."""
    if run is not None:
        if good or bad or kernels:
            raise UsageError("bisect: --run asks one kernel; expected no --good, --bad and --kernels beside it")
        _ask_one(file, run, rate, error, jobs, quiet)
        return
    case = load(file, host_memory=probe.host_memory())
    every = _list(kernels)
    ends = {"--good": _place(good, every, "--good"), "--bad": _place(bad, every, "--bad")}
    if ends["--good"] == ends["--bad"]:
        raise UsageError("bisect: expected two kernels with --good and --bad, got the same one twice")

    async def work() -> int:
        with live.progress(err, quiet=quiet) as progress:
            async with open_lab(progress, kernels=(every[ends["--bad"]],)) as lab:
                job = _job(lab, case, jobs)
                bisector = Bisector(job, lab.kernel, error, progress.note)
                with runs.going_on(job.folder):
                    found = await bisector.bisect(every, ends["--good"], ends["--bad"], rate)
        document = _document(every, found, bisector)
        (job.folder / "bisect.json").write_text(json.dumps(document, indent=2) + "\n")
        if as_json:
            print(json.dumps(document))
        else:
            for line in _said(every, found, bisector):
                out.print(line, markup=False, highlight=False, soft_wrap=True)
        return 2 if found.wrong else 0

    run_async(work())


def _ask_one(file: Path, spec: str, rate: float | None, error: float, jobs: int | None, quiet: bool) -> None:
    """One kernel, with the exit codes of `git bisect run`, to which every number below 128 is a verdict."""
    try:
        case = load(file, host_memory=probe.host_memory())
    except TopologyError as failure:
        err.print(str(failure), markup=False, highlight=False, soft_wrap=True)
        sys.exit(_ABORT)

    async def work() -> int:
        try:
            with live.progress(err, quiet=quiet) as progress:
                async with open_lab(progress) as lab:
                    bisector = Bisector(_job(lab, case, jobs), lab.kernel, error, progress.note)
                    bisector.rate = rate
                    answer = await bisector.ask(spec, error)
        except UsageError as failure:
            # A commit whose kernel was not built, or is none, says nothing about the bug.
            err.print(f"testbed: {failure}", markup=False, highlight=False, soft_wrap=True)
            return _SKIP
        except TestbedError as failure:
            err.print(f"testbed: {failure}", markup=False, highlight=False, soft_wrap=True)
            return _ABORT
        return {Answer.GOOD: 0, Answer.BAD: 1, Answer.SKIP: _SKIP}[answer]

    run_async(work())


def _job(lab: Lab, case: Case, jobs: int | None) -> Job:
    limits = Limits(tries=case.bug.tries, timeout_s=case.bug.timeout_s, jobs=jobs)
    folder = paths.new_run_folder(lab.folders.runs)
    return Job(lab=lab, case=case, limits=limits, seed=secrets.randbelow(1 << 31), folder=folder, on_try=lambda kernel, one: None)


def _first_shown(file: Path, case: Case) -> str:
    if not case.bug.kernels.shows:
        raise UsageError(f"{file}: it names no kernel where it shows; name one with --kernel")
    return case.bug.kernels.shows[0]


def _list(kernels: str | None) -> tuple[str, ...]:
    """The kernels to walk, in their order."""
    if kernels is None:
        return tuple(load_table(paths.shipped("images") / "kernels.yaml").rows)
    folder = Path(kernels)
    if not folder.is_dir():
        return tuple(name.strip() for name in kernels.split(",") if name.strip())
    files = [
        path for path in folder.iterdir() if path.is_file() and (path.suffix == ".deb" or "bzImage" in path.name or "vmlinuz" in path.name)
    ]
    if len(files) < 2:
        raise UsageError(
            f"--kernels {folder}: expected a folder of .deb files, or files named bzImage or vmlinuz, got {len(files)} of them"
        )
    return tuple(str(path) for path in campaign.ordered(files))


def _place(name: str | None, every: tuple[str, ...], option: str) -> int:
    """Where a kernel stands in the list; files of a folder go by their names."""
    if name is None:
        raise UsageError(f"bisect: expected {option} KERNEL, one of {', '.join(every)}")
    found = [number for number, one in enumerate(every) if one == name or Path(one).name == name]
    if not found:
        raise UsageError(f"{option} {name}: expected one of {', '.join(every)}")
    return found[0]


def _document(every: tuple[str, ...], found: Between, bisector: Bisector) -> dict[str, Any]:
    return {
        "version": 1,
        "kernels": list(every),
        "good": every[found.good],
        "bad": every[found.bad],
        "skipped": [every[number] for number in found.skipped],
        "wrong": found.wrong,
        "rate": bisector.rate,
        "asked": [
            {
                "kernel": one.kernel,
                "answer": one.answer.value,
                "why": one.why,
                "release": one.tried.kernel.release if one.tried else "",
                **({} if one.tried is None else asdict(one.tried.rate)),
            }
            for one in bisector.asked
        ],
        "guests": sum(len(one.tried.tries) for one in bisector.asked if one.tried),
    }


def _said(every: tuple[str, ...], found: Between, bisector: Bisector) -> list[str]:
    lines = [f"{one.kernel}: {one.answer.value}: {one.tried.rate if one.tried else one.why}" for one in bisector.asked]
    if found.wrong:
        return [*lines, f"{bisector.asked[-1].kernel}: {found.wrong}; choose other ends"]
    came = found.good < found.bad
    said = (
        f"it came after {every[found.good]}, with {every[found.bad]} at the latest"
        if came
        else f"it went after {every[found.bad]}, with {every[found.good]} at the latest"
    )
    skipped = f"; {', '.join(every[number] for number in found.skipped)} could not be tried" if found.skipped else ""
    return [*lines, said + skipped]
