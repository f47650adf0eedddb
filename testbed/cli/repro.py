"""Reproduces a bug on guests, and says how often it shows: repro."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from testbed.bugs import Case, bundle_rules, repro
from testbed.bugs.attempt import HoldGuest
from testbed.bugs.kernel_tries import KernelTries
from testbed.bugs.load import to_yaml
from testbed.bugs.outcome import Try
from testbed.bugs.repro import ReproJob, StopRule
from testbed.cli import option_values
from testbed.cli.app import KERNEL_HELP, Json, Quiet, app, err, out, run_async
from testbed.cli.bundle import note_differences, unpacked_kernels
from testbed.cli.repro_source import BugOptions, NamedBug, read_bug, select_kernels
from testbed.cli.run_results import writing_results
from testbed.errors import UsageError
from testbed.guest.factory import GuestFactory, open_factory
from testbed.host import paths
from testbed.progress import Progress
from testbed.report import live
from testbed.report.bugs import files, results, tables
from testbed.report.bugs.results import RunInfo
from testbed.report.bugs.schema import Repro
from testbed.report.formats import write_atomically
from testbed.report.partial import Partial
from testbed.report.result_writer import ResultWriter
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.vms import launcher
from testbed.vms.hold import Holder

BugFile = Annotated[
    Path | None, typer.Argument(help="Bug file, or a bundle. See docs/reproduce.md.", show_default=False)
]
Script = Annotated[
    Path | None,
    typer.Option("--script", help="A script instead of a file: for bash, or for the interpreter in its first line."),
]
Expect = Annotated[
    str | None,
    typer.Option(
        "--expect",
        help="With --script: a pattern (RE2) on the console, in the output, or among the counters that shows the bug.",
    ),
]
Kernels = Annotated[
    list[str] | None, typer.Option("--kernel", "-k", help=f"Only on this kernel, or these. {KERNEL_HELP}")
]
Clean = Annotated[list[str] | None, typer.Option("--clean", help="A kernel on which the bug must not show.")]
Tries = Annotated[
    int | None, typer.Option("--tries", "-n", min=1, help="The most tries on each kernel; by default that of the file.")
]
All = Annotated[bool, typer.Option("--all", help="Run all tries, and do not stop at the first hit: for the rate.")]
Until = Annotated[
    str | None,
    typer.Option(
        "--until", help="Such as 95%: go on after a hit until the rate's interval is above it, or can no longer be."
    ),
]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Guests at once; by default as many as fit.")]
Timeout = Annotated[
    str | None, typer.Option("--timeout", help="For the script of each try, such as 90s; by default that of the file.")
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="The number from which the SEED of each try is derived; random by default."),
]
Topology = Annotated[
    Path | None, typer.Option("--topology", "-t", help="With --script: the topology file of the guest.")
]
Save = Annotated[Path | None, typer.Option("--save", help="Also write the bug as a bug file.")]
Hold = Annotated[
    bool,
    typer.Option("--hold", help="Stop when the signature shows, keep the guest running, and print how to log in."),
]
Paused = Annotated[bool, typer.Option("--paused", help="With --hold: stop the guest's CPUs.")]
HeldName = Annotated[str | None, typer.Option("--name", help="With --hold: the name of the guest; `held` by default.")]
Dump = Annotated[
    bool,
    typer.Option("--dump", help="Write the memory of guests that show the bug, hang or die into their log folders."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOptions:
    """Options that say when the tries end, as they were given."""

    tries: int | None
    every: bool
    until: str | None
    jobs: int | None
    timeout: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOptions:
    """Options for the first guest that shows the bug. `name`: None without `--name`."""

    hold: bool
    paused: bool
    name: str | None
    dump: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproOptions:
    """Options of `repro`, as they were given."""

    bug: BugOptions
    stop: StopOptions
    hold: HoldOptions
    seed: int | None
    save: Path | None
    as_json: bool
    quiet: bool


@app.command("repro")
def repro_command(
    file: BugFile = None,
    script: Script = None,
    expect: Expect = None,
    kernel: Kernels = None,
    clean: Clean = None,
    tries: Tries = None,
    every: All = False,
    until: Until = None,
    jobs: Jobs = None,
    timeout: Timeout = None,
    seed: Seed = None,
    topology: Topology = None,
    save: Save = None,
    hold: Hold = False,
    paused: Paused = False,
    name: HeldName = None,
    dump: Dump = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Reproduce a bug: clone guests until its signature shows or the tries end, and report how often it shows.

    Stops at the first hit, which proves the bug but says little about its rate; --all and --until go on. Where kernels
    must be clean, it goes on until the difference is statistically significant.

    Exits 0 if reproduced, 1 if not, 2 on an error, 3 if invalid: it shows on a kernel that must be clean, or the
    difference is not significant.
    """
    kernels, clean_on = tuple(kernel or ()), tuple(clean or ())
    bug = BugOptions(file=file, script=script, expect=expect, topology=topology, kernels=kernels, clean=clean_on)
    stop = StopOptions(tries=tries, every=every, until=until, jobs=jobs, timeout=timeout)
    held = HoldOptions(hold=hold, paused=paused, name=name, dump=dump)
    _reproduce(ReproOptions(bug=bug, stop=stop, hold=held, seed=seed, save=save, as_json=as_json, quiet=quiet))


def _reproduce(options: ReproOptions) -> None:
    bug = read_bug(options.bug)
    shows, clean = select_kernels(bug.case, options.bug)
    limits = _stop_rule(options.stop, bug.case)
    _check_combinations(options)
    if options.save is not None:
        bug.save(options.save)
    run_async(_ReproRun(options, bug, limits).run(shows, clean))


def _stop_rule(options: StopOptions, case: Case) -> StopRule:
    """:raise UsageError: the timeout or the rate is malformed."""
    return StopRule(
        tries=options.tries or case.bug.tries,
        timeout_s=case.bug.timeout_s if options.timeout is None else option_values.timeout_s(options.timeout),
        until=None if options.until is None else option_values.share("--until", options.until),
        every=options.every,
        jobs=options.jobs,
    )


def _check_combinations(options: ReproOptions) -> None:
    """:raise UsageError: options were given that do not belong together."""
    stop, held = options.stop, options.hold
    if stop.every and stop.until is not None:
        raise UsageError("repro: expected --all or --until, got both")
    if (held.paused or held.name is not None) and not held.hold:
        raise UsageError("repro: --paused and --name belong to --hold")
    if held.hold and (stop.every or stop.until is not None):
        raise UsageError("repro: --hold stops at the first hit; expected no --all and no --until beside it")


class _ReproRun:
    """One run of `repro`: opens the guest factory, runs the tries, and keeps the results up to date."""

    def __init__(self, options: ReproOptions, bug: NamedBug, limits: StopRule) -> None:
        self._options, self._bug, self._limits = options, bug, limits
        self._tried: dict[str, KernelTries] = {}
        self._started = 0.0
        self._job: ReproJob
        self._kernels: tuple[tuple[KernelFiles, ...], tuple[KernelFiles, ...]]
        self._progress: Progress
        self._writer: ResultWriter[Repro]

    async def run(self, shows: tuple[str, ...], clean: tuple[str, ...]) -> int:
        """Try the bug on both groups of kernels; return the exit code."""
        bundle = self._bug.bundle
        bundled = bundle.manifest.with_kernels if bundle else ()
        with contextlib.ExitStack() as stack:
            self._progress = stack.enter_context(live.progress(err, quiet=self._options.quiet))
            needed = tuple(name for name in (*shows, *clean) if name not in bundled)
            async with open_factory(self._progress, kernels=needed) as factory:
                own = unpacked_kernels(bundle, factory)
                sides = [[own.get(name) or await factory.kernel(name) for name in names] for names in (shows, clean)]
                self._kernels = repro.kernel_sides(*sides)
                self._job = self._make_job(factory)
                # The writer outlives the factory: results are complete once all guests are gone.
                self._writer = stack.enter_context(
                    writing_results(self._job.folder, self._document, files.write, self._progress.note)
                )
                _announce(factory, self._bug.case, self._limits, self._progress)
                self._write_bug()
                if bundle is not None:
                    note_differences(bundle, factory, (*self._kernels[0], *self._kernels[1]), self._progress)
                tried = await repro.reproduce(self._job, *self._kernels)
                self._tried |= {kernel_tries.kernel.name: kernel_tries for kernel_tries in tried}
            document = self._writer.finish_or_raise()
        if self._options.as_json:
            print(json.dumps(document.as_json()))
        else:
            _show(document, self._job.folder)
        return results.EXIT_CODES[document.result]

    def _make_job(self, factory: GuestFactory) -> ReproJob:
        folder = paths.new_run_folder(factory.folders.runs)
        self._started = time.monotonic()
        options, bundle = self._options, self._bug.bundle
        seed = bundle.manifest.seed if bundle else secrets.randbelow(1 << 31)
        return ReproJob(
            factory=factory,
            case=self._bug.case,
            limits=self._limits,
            seed=seed if options.seed is None else options.seed,
            folder=folder,
            on_try=self._on_try,
            hold=self._hold(factory) if options.hold.hold else None,
            paused=options.hold.paused,
            dump=options.hold.dump,
        )

    def _hold(self, factory: GuestFactory) -> HoldGuest:
        held = self._options.hold
        name = held.name or "held"
        launcher.check_name(name)
        launcher.check_free((name,), factory.folders)
        announce: Callable[[str], None] = _print_always if self._options.quiet else self._progress.note
        holder = Holder(
            folders=factory.folders,
            name=name,
            file=self._bug.title,
            key=factory.key.openssh,
            paused=held.paused,
            announce=announce,
        )
        return lambda guest, match: holder.hold(guest, match.seen)

    def _write_bug(self) -> None:
        """Write the bug with the kernels of this run, so that a bundle of the run is run on the same ones."""
        names = {
            side: [kernel.name for kernel in kernels]
            for side, kernels in zip(("shows", "clean"), self._kernels, strict=True)
        }
        write_atomically(to_yaml({**self._bug.plain, "kernels": names}), self._job.folder / bundle_rules.BUG)

    def _on_try(self, so_far: KernelTries, latest: Try) -> None:
        before = self._tried.get(so_far.kernel.name)
        self._tried[so_far.kernel.name] = so_far
        # The try of a held guest is reported twice; its line was printed when it was held.
        if before is None or latest.number not in [known.number for known in before.tries]:
            self._progress.note(f"{so_far.kernel.name}: {tables.try_line(results.attempt(latest))}")
        self._writer.update()

    def _document(self, why: str | None) -> Repro:
        """Return the results so far. `why`: the reason of an early end, "" while the run goes on; None if complete."""
        kernels = (*self._kernels[0], *self._kernels[1])
        most = self._limits.tries * len(kernels)
        ended = sum(len(one.tries) for one in self._tried.values())
        partial = None if why is None else Partial(ended=ended, wanted=most, at_most=True, what="tries", why=why)
        untried = [kernel.name for kernel in kernels if kernel.name not in self._tried]
        run = RunInfo(command=sys.argv, took_s=time.monotonic() - self._started, partial=partial)
        return results.repro_document(self._job, tuple(self._tried.values()), run, untried)


def _print_always(text: str) -> None:
    """Print even with --quiet: otherwise nobody would know that a guest is held."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def _announce(factory: GuestFactory, case: Case, limits: StopRule, progress: Progress) -> None:
    how = "KVM" if factory.host.accelerator == "kvm" else "TCG, QEMU's own emulation"
    at_once = limits.jobs or repro.default_jobs(factory.host, case)
    progress.note(
        f"{case.bug.summary}: up to {limits.tries} tries on each kernel, {at_once} at once; "
        f"QEMU {factory.host.qemu.version} on {how}"
    )


def _show(document: Repro, folder: Path) -> None:
    """Print the results as a table and lines."""
    out.print(tables.repro_table(document))
    for line in tables.notable_outcomes(document):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"{document.result}: {document.reason}; {document.took_s:.0f} s",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    print(folder)
