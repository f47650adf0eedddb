"""The verb that asks scenarios what they notice: sensitivity."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.cli.app import FAILED, IgnoreStack, Json, Quiet, TopologyOption, app, err, out, run_async
from testbed.cli.kernels import SOURCE_HELP, Flavours, MakeArgs, configured
from testbed.cli.run import Done, Full, Names, Wanted, execute, for_scenarios
from testbed.errors import UsageError
from testbed.host import paths
from testbed.report import results, sensitivity
from testbed.report.markdown import one_line
from testbed.report.sensitivity import UNCHANGED
from testbed.scenarios import runner
from testbed.scenarios.catalogue import select
from testbed.scenarios.verdict import Gap
from testbed.store.kernels.ablations import ABLATIONS
from testbed.store.kernels.kernel_files import KernelFiles


@app.command("sensitivity")
def sensitivity_command(
    scenarios: Names = None,
    tree: Annotated[str, typer.Option("--tree", help=f"Source that has the series. {SOURCE_HELP}")] = "debian-6.1",
    ablation: Annotated[
        list[str] | None,
        typer.Option("--ablation", help=f"Only these: {UNCHANGED}, {', '.join(ABLATIONS)}; all without it."),
    ] = None,
    flavour: Flavours = None,
    make_arg: MakeArgs = None,
    full: Full = False,
    of: Annotated[
        list[str] | None, typer.Option("--of", help="Earlier runs of this verb: run nothing, and make their table.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the table as Markdown, too.")] = None,
    topology: TopologyOption = None,
    ignore_stack: IgnoreStack = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on kernels that each lack one thing of the series, and on the unchanged one: which loss does each notice?

    Exits 0 where each patch's loss is noticed and each scenario notices one, 1 otherwise.
    """
    if of:
        runs = paths.folders().runs
        sys.exit(_told(tuple(_earlier(one, runs) for one in of), output, as_json=as_json))
    names = tuple(ablation or (UNCHANGED, *ABLATIONS))
    for name in names:
        if name not in (UNCHANGED, *ABLATIONS):
            raise UsageError(f"--ablation {name}: expected one of {UNCHANGED}, {', '.join(ABLATIONS)}")
    common = replace(configured(flavour, None, None, make_arg), source=tree)
    wanted = Wanted(
        cases=select(tuple(scenarios or ()), quick=not full, full=full),
        file=for_scenarios(topology, ignore=ignore_stack),
        repeat=1,
        cold=False,
        quiet=quiet,
        as_json=False,
        sample_s=None,
        kernels={name: replace(common, ablations=() if name == UNCHANGED else (name,)) for name in names},
    )

    def judge(kernels: dict[str, KernelFiles]) -> runner.Judge:
        return runner.judge_each(dict.fromkeys(kernels, Gap.CLOSED))

    def tell(done: Done) -> int:
        err.print(f"run: {done.folder}", markup=False, highlight=False, soft_wrap=True)
        return _told((done.document,), output, as_json=as_json)

    run_async(execute(wanted, judge, tell))


def _earlier(run: str, runs: Path) -> dict[str, Any]:
    """The results of an earlier run of this verb.

    :raise UsageError: there is no such run, or it is one of another verb.
    """
    document = results.read(run, runs)
    others = ", ".join(name for name in document["kernels"] if name not in (UNCHANGED, *ABLATIONS))
    if others:
        raise UsageError(
            f"--of {run}: expected a run of `testbed sensitivity`, of {UNCHANGED} and ablations, got one of {others}"
        )
    return document


def _without_output(words: list[str]) -> list[str]:
    """A command's words without where it wrote its table."""
    for option in ("-o", "--output"):
        if option in words:
            at = words.index(option)
            words = words[:at] + words[at + 2 :]
    return [word for word in words if not word.startswith("--output=")]


def _told(documents: tuple[dict[str, Any], ...], output: Path | None, *, as_json: bool) -> int:
    """Print and write the table; the exit code."""
    found = sensitivity.table(documents)
    host, said = documents[0]["host"], sensitivity.table_complaints(found, documents)
    took_s = sum(document["guest_seconds"] for document in documents)
    words = (shlex.join(["./tb", *_without_output(document["command"][1:])]) for document in documents)
    commands = "\n".join(f"    {one_line(said)}" for said in words)
    about = f"{took_s:.0f} s of guests, on {host['cores']} cores with Linux {host['kernel']}, QEMU {host['qemu']} ({host['accelerator']})."
    text = sensitivity.markdown(found, f"{commands}\n\n{about}", documents)
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--output {output}: cannot be written: {error.strerror}") from error
    if as_json:
        print(json.dumps({"cases": found, "complaints": said}))
    else:
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    return FAILED if said else 0
