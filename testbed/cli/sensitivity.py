"""Finds out which losses of a patch series each scenario notices: sensitivity."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.app import FAILED, IgnoreStack, Json, Quiet, TopologyOption, app, err, out, run_async
from testbed.cli.kernels import SOURCE_HELP, Flavours, MakeArgs, build_config
from testbed.cli.run import Full, Names
from testbed.cli.scenario_run import FinishedRun, RunOptions, execute, prepare
from testbed.errors import UsageError
from testbed.host import paths
from testbed.report import results, sensitivity
from testbed.report.markdown import one_line
from testbed.report.schema import Document
from testbed.report.sensitivity import UNCHANGED
from testbed.scenarios import runner
from testbed.scenarios.verdict import Gap
from testbed.store.kernels.ablations import ABLATIONS
from testbed.store.kernels.builder import BuildSpec
from testbed.store.kernels.kernel_files import KernelFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """Where the table goes."""

    output: Path | None
    as_json: bool


@app.command("sensitivity")
def sensitivity_command(
    scenarios: Names = None,
    tree: Annotated[str, typer.Option("--tree", help=f"Source that contains the series. {SOURCE_HELP}")] = "debian-6.1",
    ablation: Annotated[
        list[str] | None,
        typer.Option("--ablation", help=f"Only these: {UNCHANGED}, {', '.join(ABLATIONS)}; all by default."),
    ] = None,
    flavour: Flavours = None,
    make_arg: MakeArgs = None,
    full: Full = False,
    of: Annotated[
        list[str] | None,
        typer.Option("--of", help="Run nothing; make the table of these earlier runs of this command."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the table as Markdown.")] = None,
    topology: TopologyOption = None,
    ignore_stack: IgnoreStack = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run scenarios on kernels that each lack one part of the series, and on the unchanged kernel: which losses does
    each scenario detect?

    Exits 0 if the loss of each patch is detected and each scenario detects one, 1 otherwise.
    """
    table = TableOptions(output=output, as_json=as_json)
    if of:
        runs = paths.folders().runs
        sys.exit(_write_table(tuple(_read_earlier(run, runs) for run in of), table))
    options = RunOptions(
        scenarios=scenarios, quick=not full, full=full, topology=topology, ignore_stack=ignore_stack, quiet=quiet
    )
    config = replace(build_config(flavour, None, None, make_arg), source=tree)
    _run(tuple(ablation or (UNCHANGED, *ABLATIONS)), config, options, table)


def _run(names: tuple[str, ...], config: BuildSpec, options: RunOptions, table: TableOptions) -> None:
    for name in names:
        if name not in (UNCHANGED, *ABLATIONS):
            raise UsageError(f"--ablation {name}: expected one of {UNCHANGED}, {', '.join(ABLATIONS)}")
    kernels = {name: replace(config, ablations=() if name == UNCHANGED else (name,)) for name in names}

    def make_judge(kernels: dict[str, KernelFiles]) -> runner.Judge:
        return runner.judge_each(dict.fromkeys(kernels, Gap.CLOSED))

    def show(run: FinishedRun) -> int:
        err.print(f"run: {run.folder}", markup=False, highlight=False, soft_wrap=True)
        return _write_table((run.document,), table)

    run_async(execute(prepare(options, kernels), make_judge, show))


def _read_earlier(run: str, runs: Path) -> Document:
    """Read the results of an earlier run of this command.

    :raise UsageError: there is no such run, or it is one of another command.
    """
    document = results.read(run, runs)
    others = ", ".join(name for name in document.kernels if name not in (UNCHANGED, *ABLATIONS))
    if others:
        raise UsageError(
            f"--of {run}: expected a run of `testbed sensitivity`, of {UNCHANGED} and ablations, got one of {others}"
        )
    return document


def _without_output(words: list[str]) -> list[str]:
    """Remove the option that says where a command wrote its table."""
    for option in ("-o", "--output"):
        if option in words:
            at = words.index(option)
            words = words[:at] + words[at + 2 :]
    return [word for word in words if not word.startswith("--output=")]


def _write_table(documents: tuple[Document, ...], options: TableOptions) -> int:
    """Print the table, write it into a file if asked to, and return the exit code."""
    cases = sensitivity.table(documents)
    host, complaints = documents[0].host, sensitivity.table_complaints(cases, documents)
    took_s = sum(document.guest_seconds for document in documents)
    command_lines = (shlex.join(["./tb", *_without_output(document.command[1:])]) for document in documents)
    commands = "\n".join(f"    {one_line(command)}" for command in command_lines)
    machine = f"{host.cores} cores with Linux {host.kernel}, QEMU {host.qemu} ({host.accelerator})"
    text = sensitivity.markdown(cases, f"{commands}\n\n{took_s:.0f} s of guests, on {machine}.", documents)
    if (output := options.output) is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--output {output}: cannot be written: {error.strerror}") from error
    if options.as_json:
        print(json.dumps({"cases": cases, "complaints": complaints}))
    else:
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    return FAILED if complaints else 0
