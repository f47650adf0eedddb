"""The verb that reproduces bugs: repro."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.bugs import Case, bundle_rules, repro
from testbed.bugs import bundle as bundles
from testbed.bugs.bundle import Bundle
from testbed.bugs.load import Place, error_at, inline_files, is_bug, parse_mapping, self_contained, to_yaml
from testbed.bugs.outcome import Try, describe
from testbed.bugs.repro import KernelTries, ReproJob, StopRule
from testbed.cli.app import KERNEL_HELP, Json, Quiet, app, err, out, run_async
from testbed.cli.bug_files import check_scripts, ready
from testbed.cli.bundle import tell_differences, unpacked
from testbed.cli.result_writer import run_kept
from testbed.errors import TopologyError, UsageError
from testbed.guest.channels.kernel_log import ANY_SPLAT
from testbed.guest.factory import GuestFactory, open_factory
from testbed.host import paths
from testbed.progress import Progress
from testbed.report import live
from testbed.report.bugs import files, results
from testbed.report.bugs import tables as report
from testbed.report.formats import write_atomically
from testbed.report.partial import Partial
from testbed.store.kernels.table import shipped_table
from testbed.topology.kernel_abilities import KernelAbilities
from testbed.topology.yaml_reader import read_file
from testbed.units import parse_duration
from testbed.vms import launcher
from testbed.vms.hold import Holder

# Where nothing is said of what a script shows: it fails, the kernel complains, or the guest is gone.
_ANY_TROUBLE = (
    {"status": "failure"},
    {"console": ANY_SPLAT},
    {"guest": "lost"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A bug that a command line names: `plain` is its file's mapping, needing no other file."""

    case: Case
    plain: dict[str, Any]
    title: str
    bundle: Bundle | None = None


@app.command("repro")
def repro_command(
    file: Annotated[
        Path | None, typer.Argument(help="Bug file, or a bundle. See docs/reproduce.md.", show_default=False)
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option("--script", help="A script in place of a file: for bash, or for what its first line names."),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect",
            help="With --script: what shows the bug, on the console, in the output, or among the counters (RE2).",
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", "-k", help=f"Only on this one, or these. {KERNEL_HELP}")
    ] = None,
    clean: Annotated[list[str] | None, typer.Option("--clean", help="A kernel on which it must not show.")] = None,
    tries: Annotated[
        int | None, typer.Option("--tries", "-n", min=1, help="At most so many on each kernel; the file's without it.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All tries, and no end at the first hit: for the rate.")] = False,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", help="Such as 95%: go on after a hit until the rate's interval is above it, or cannot be."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Guests at once; as many as fit without it.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", help="For each try's script, such as 90s; the file's without it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="What the tries' SEED is made from; chance without it.")
    ] = None,
    topology: Annotated[Path | None, typer.Option("--topology", "-t", help="With --script: the guest.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write what is run as a bug file, too.")] = None,
    hold: Annotated[
        bool,
        typer.Option(
            "--hold", help="Stop at the moment of the signature with the guest running, and say how to enter it."
        ),
    ] = False,
    paused: Annotated[bool, typer.Option("--paused", help="With --hold: the guest stands still.")] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="With --hold: what the guest is called; `held` without it.")
    ] = None,
    dump: Annotated[
        bool, typer.Option("--dump", help="Write the memory of guests that show it, hang or die, beside their logs.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Reproduce a bug: clone guests until its signature shows, or the tries end; says how often it does.

    Stops at the first hit, which says that it shows and little of how often; --all and --until go on for the rate. Where a kernel must be
    clean, it goes on until the two are told apart.

    Exits 0 reproduced, 1 not, 2 trouble, 3 invalid: it shows on a kernel that must be clean, or is not told apart there.
    """
    wanted = _wanted(file, script, expect, topology, tuple(kernel or ()), tuple(clean or ()))
    shows, must_be_clean = _kernels(wanted.case, tuple(kernel or ()), tuple(clean or ()))
    limits = StopRule(
        tries=tries or wanted.case.bug.tries,
        timeout_s=wanted.case.bug.timeout_s if timeout is None else _duration_s(timeout),
        until=None if until is None else _share(until),
        every=every,
        jobs=jobs,
    )
    if every and until is not None:
        raise UsageError("repro: expected --all or --until, got both")
    if (paused or name is not None) and not hold:
        raise UsageError("repro: --paused and --name belong to --hold")
    if hold and (every or until is not None):
        raise UsageError("repro: --hold stops at the first hit; expected no --all and no --until beside it")
    if save is not None:
        _save(wanted, save)
    bundled = wanted.bundle.manifest.with_kernels if wanted.bundle else ()
    chosen = seed if seed is not None else wanted.bundle.manifest.seed if wanted.bundle else secrets.randbelow(1 << 31)

    async def work() -> int:
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(live.progress(err, quiet=quiet))
            async with open_factory(
                progress, kernels=tuple(one for one in (*shows, *must_be_clean) if one not in bundled)
            ) as factory:
                own = unpacked(wanted.bundle, factory)
                found = [
                    [own.get(spec) or await factory.kernel(spec) for spec in specs] for specs in (shows, must_be_clean)
                ]
                kernels = repro.kernel_sides(*found)
                folder = paths.new_run_folder(factory.folders.runs)
                begun, tried = time.monotonic(), dict[str, KernelTries]()

                def document(why: str | None) -> dict[str, Any]:
                    most = limits.tries * sum(map(len, kernels))
                    ended = sum(len(one.tries) for one in tried.values())
                    partial = (
                        None if why is None else Partial(ended=ended, wanted=most, at_most=True, what="tries", why=why)
                    )
                    rest = [one.name for one in (*kernels[0], *kernels[1]) if one.name not in tried]
                    return results.repro_document(
                        job, tuple(tried.values()), sys.argv, time.monotonic() - begun, partial, rest
                    )

                def on_try(so_far: KernelTries, one: Try) -> None:
                    before = tried.get(so_far.kernel.name)
                    tried[so_far.kernel.name] = so_far
                    # One that was held has its line since then.
                    if before is None or one.number not in [known.number for known in before.tries]:
                        progress.note(f"{so_far.kernel.name}: {report.try_line(describe(one))}")
                    keeper.update()

                job = ReproJob(
                    factory=factory,
                    case=wanted.case,
                    limits=limits,
                    seed=chosen,
                    folder=folder,
                    on_try=on_try,
                    hold=_holder(factory, name or "held", wanted.title, paused, _say if quiet else progress.note).hold
                    if hold
                    else None,
                    paused=paused,
                    dump=dump,
                )
                keeper = stack.enter_context(run_kept(folder, document, files.write, progress.note))
                announce(factory, wanted.case, limits, progress)
                # What was run, with its kernels: a bundle of it is run on the same.
                names = {
                    side: [one.name for one in some] for side, some in zip(("shows", "clean"), kernels, strict=True)
                }
                write_atomically(to_yaml({**wanted.plain, "kernels": names}), folder / bundle_rules.BUG)
                if wanted.bundle is not None:
                    tell_differences(wanted.bundle, factory, (*kernels[0], *kernels[1]), progress)
                tried |= {one.kernel.name: one for one in await repro.reproduce(job, kernels[0], kernels[1])}
            complete = keeper.finished()
        if as_json:
            print(json.dumps(complete))
        else:
            show(complete, folder)
        return results.EXIT_CODES[complete["result"]]

    run_async(work())


def _holder(factory: GuestFactory, name: str, title: str, paused: bool, how: Callable[[str], None]) -> Holder:
    launcher.check_name(name)
    launcher.check_free((name,), factory.folders)
    return Holder(folders=factory.folders, name=name, file=title, key=factory.key.openssh, paused=paused, how=how)


def _say(text: str) -> None:
    """Also to whoever wants no progress: without it nobody knows that a guest is held."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def announce(factory: GuestFactory, case: Case, limits: StopRule, progress: Progress) -> None:
    how = "KVM" if factory.host.accelerator == "kvm" else "TCG, QEMU's own emulation"
    at_once = limits.jobs or repro.default_jobs(factory.host, case)
    progress.note(
        f"{case.bug.summary}: up to {limits.tries} tries on each kernel, {at_once} at once; QEMU {factory.host.qemu.version} on {how}"
    )


def show(document: dict[str, Any], folder: Path) -> None:
    """The results for a person."""
    out.print(report.repro_table(document))
    for line in report.notable_outcomes(document):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"{document['result']}: {document['reason']}; {document['took_s']:.0f} s",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    print(folder)


def _wanted(
    file: Path | None,
    script: Path | None,
    expect: str | None,
    topology: Path | None,
    kernels: tuple[str, ...],
    clean: tuple[str, ...],
) -> Wanted:
    if (file is None) == (script is None):
        raise UsageError(f"repro: expected a bug file or --script, got {'neither' if file is None else 'both'}")
    if script is None:
        assert file is not None
        if expect is not None or topology is not None:
            raise UsageError(f"repro: --expect and --topology belong to --script; {file} has its own")
        if bundles.is_bundle(file):
            bundle = bundles.read(file)
            check_scripts(bundle.case.bug, {})
            return Wanted(case=bundle.case, plain=bundle.plain, title=str(file), bundle=bundle)
        try:
            able = KernelAbilities(shipped_table(), paths.cache_folder()).of_all
            case = ready(file, None if kernels else able)
        except TopologyError as error:
            if is_bug(file):
                raise
            expected = error_at(file, "expected a bug file (docs/reproduce.md), or a bundle of `testbed bundle`")
            raise TopologyError((*expected.problems, *error.problems)) from error
        return Wanted(case=case, plain=self_contained(file), title=str(file))
    return _of_script(script, expect, topology, kernels, clean)


def _of_script(
    script: Path, expect: str | None, topology: Path | None, kernels: tuple[str, ...], clean: tuple[str, ...]
) -> Wanted:
    """The bug that a script and what is expected of it are."""
    text = read_file(script)
    plain: dict[str, Any] = {
        "version": 1,
        "summary": f"{script.name} shows {expect!r}" if expect is not None else f"{script.name} fails",
        "source": f"made by: testbed repro --script {script.name}",
        "kernels": {
            "shows": list(kernels or (shipped_table().patched,)),
            "clean": list(clean),
        },
        "script": text,
        "script-name": script.name,
        "signature": [{"expect": expect}] if expect is not None else [dict(one) for one in _ANY_TROUBLE],
    }
    sources: dict[str, str] = {}
    if topology is not None:
        plain = inline_files(plain | {"topology": str(topology)}, Path("bug.yaml"), sources)
    try:
        case = parse_mapping(plain, str(script), script_file=str(script), sources=sources)
        check_scripts(case.bug, {"script": Place(file=str(script), line=1)})
        return Wanted(case=case, plain=plain, title=str(script))
    except TopologyError as error:
        if all(problem.path == "script" for problem in error.problems):
            raise
        # The places are those of a file that nobody has written.
        raise UsageError(
            "repro: " + "; ".join(f"{problem.path}: {problem.message}" for problem in error.problems)
        ) from error


def _kernels(case: Case, kernels: tuple[str, ...], clean: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where it must show, and where it must not."""
    named = case.bug.kernels
    shows = kernels or named.shows
    must_be_clean = clean or (() if kernels else named.clean)
    if not shows:
        raise UsageError("repro: expected a kernel on which to try, got none; name one with --kernel")
    both = sorted(set(shows) & set(must_be_clean))
    if both:
        raise UsageError(f"repro: {', '.join(both)}: expected a kernel with --kernel or with --clean, got it with both")
    return tuple(dict.fromkeys(shows)), tuple(dict.fromkeys(must_be_clean))


def _duration_s(text: str) -> float:
    try:
        found = parse_duration(text) / 1e6
    except ValueError as error:
        raise UsageError(f"--timeout {text}: {error}") from None
    if not found:
        raise UsageError("--timeout 0: expected more than nothing, such as 90s")
    return found


def _share(text: str) -> float:
    """A share such as 95% or 0.95."""
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 < found < 1:
        raise UsageError(f"--until {text}: expected a share between 0 % and 100 %, such as 95%")
    return found


def _save(wanted: Wanted, path: Path) -> None:
    head = "yaml-language-server: $schema=schema.json\n" + wanted.case.bug.summary
    try:
        path.write_text(to_yaml(wanted.plain, head), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--save {path}: cannot be written: {error.strerror}") from error
