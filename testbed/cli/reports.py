"""Shows and removes earlier runs: report, schema, runs."""

from __future__ import annotations

import json
import sys
import webbrowser
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from testbed.cli import option_values
from testbed.cli.app import Json, app, err, rows
from testbed.errors import TestbedError, UsageError
from testbed.host import paths, registry, untrusted_files
from testbed.report import diff, formats, live, result_reader, results, runs, schema
from testbed.report.bugs import files as bug_files
from testbed.report.bugs import results as bug_results
from testbed.report.bugs.schema import BugDocument
from testbed.report.runs import Run
from testbed.report.schema import Document
from testbed.report.vm_tables import age
from testbed.scenarios.verdict import EXIT_CODES, Verdict
from testbed.units import format_size

_FORMATS = ", ".join(formats.FORMATS)

RunNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN", help="A run's folder, or its name, or `last`; two of them for --diff."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write it into this file instead of printing it.")]


@app.command("report")
def report_command(
    run: RunNames = None,
    kind: Annotated[str, typer.Option("--format", "-f", help=f"One of {_FORMATS}.")] = "markdown",
    output: Output = None,
    show: Annotated[
        bool, typer.Option("--open", help="Write the page again from the run's results, and open it in a browser.")
    ] = False,
    between: Annotated[
        bool,
        typer.Option(
            "--diff",
            help="What changed between two runs beyond chance; exits 1 if anything did, 3 if nothing can be told.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the results of an earlier run, as Markdown or in another format; or what changed between two. Ends as the
    run did.
    """
    named, root = run or ["last"], paths.folders().runs
    if between:
        if show or kind != "markdown":
            raise UsageError(
                "report --diff: it is text, or JSON with --json; expected no --open and no --format beside it"
            )
        _diff(named, root, as_json, output)
        return
    if as_json and kind not in ("markdown", "json"):
        raise UsageError(f"report: expected --json or --format {kind}, got both")
    if len(named) != 1:
        raise UsageError(f"report: expected one run, or --diff and two, got {', '.join(named)}")
    if kind not in formats.FORMATS:
        raise UsageError(f"--format {kind}: expected one of {_FORMATS}")
    folder = results.locate(named[0], root)
    bug = bug_files.read(folder)
    document = results.read(named[0], root) if bug is None else bug
    if show:
        page = folder.resolve() / formats.PAGE
        formats.write_atomically(_text(document, "html", folder), page)
        if not webbrowser.open(page.as_uri()):
            err.print(f"no browser could be started; the page is {page}", markup=False, highlight=False, soft_wrap=True)
    else:
        _write(_text(document, "json" if as_json else kind, folder), output, folder)
    if isinstance(document, Document):
        _exit(document.verdict, folder, EXIT_CODES[Verdict(document.verdict)])
    _exit(document.result, folder, bug_results.EXIT_CODES[document.result])


def _exit(result: str, folder: Path, code: int) -> NoReturn:
    err.print(live.last_line(result, folder), markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _text(document: Document | BugDocument, kind: str, folder: Path) -> str:
    if isinstance(document, Document):
        return formats.FORMATS[kind](document, folder)
    return bug_files.FORMATS[kind](document, folder)


def _diff(named: list[str], root: Path, as_json: bool, output: Path | None) -> None:
    if len(named) != 2:
        raise UsageError(f"report --diff: expected two runs, got {', '.join(named)}")
    changes = diff.compare(*(results.read(run, root) for run in named))
    _write(
        json.dumps(changes.as_json()) + "\n" if as_json else diff.text(changes),
        output,
        *(results.locate(run, root) for run in named),
    )
    sys.exit(diff.EXIT_CODES[changes.result])


def _write(text: str, output: Path | None, *folders: Path) -> None:
    """Print the text or write it into a file. In the untrusted `folders` of runs, a symbolic link is replaced and not
    followed.
    """
    if output is None:
        sys.stdout.write(text)
        return
    try:
        above = output.parent.resolve()
        if any(above.is_relative_to(folder.resolve()) for folder in folders):
            untrusted_files.write_below(above, output.name, text)
        else:
            output.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error.strerror}") from error


@app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of results.json; that of topology files is topologies/schema.json."""
    print(schema.json_schema(), end="")


@app.command("runs")
def runs_command(
    prune: Annotated[bool, typer.Option("--prune", help="Remove the runs that the options below select.")] = False,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Runs that began longer ago, such as 30d, 12h or 2w.")
    ] = None,
    larger_than: Annotated[
        str | None,
        typer.Option("--larger-than", help="The oldest runs, until the rest is at most this large, such as 5G."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="Never this many of the newest runs; alone: all others.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    as_json: Json = False,
) -> None:
    """List earlier runs: when, verdict, command, cases, size; or remove old ones. A run in progress is never
    removed.
    """
    folders = paths.folders()
    if not prune and (older_than or larger_than or keep is not None or dry_run):
        raise UsageError("runs: --older-than, --larger-than, --keep and --dry-run go with --prune")
    if prune and older_than is None and larger_than is None and keep is None:
        raise UsageError("runs --prune: expected --older-than, --larger-than or --keep, which say what may go")
    listed = runs.list_runs(
        folders.runs, result_reader.summarize, [Path(vm.record.evidence) for vm in registry.list_vms(folders)]
    )
    if not prune:
        _show(listed, as_json, "runs")
        return
    seconds = (
        option_values.age_s("--older-than", older_than)
        if older_than is not None
        else (0.0 if larger_than is None else None)
    )
    largest = option_values.size_bytes("--larger-than", larger_than) if larger_than is not None else None
    chosen = runs.select_unused(
        listed, datetime.now(UTC), older_than_s=seconds, larger_than_bytes=largest, keep=keep or 0
    )
    failures = [] if dry_run else _remove(chosen, folders.runs)
    _show(tuple(run for run in chosen if run not in failures), as_json, "would_be_removed" if dry_run else "removed")
    if failures:
        sys.exit(2)


def _remove(chosen: tuple[Run, ...], root: Path) -> list[Run]:
    """Remove runs; print why one cannot be removed, and return those."""
    failures = []
    for run in chosen:
        try:
            runs.remove_run(run, root)
        except TestbedError as error:
            err.print(f"testbed: {error}", markup=False, highlight=False, soft_wrap=True)
            failures.append(run)
    return failures


def _show(listed: tuple[Run, ...], as_json: bool, what: str) -> None:
    if as_json:
        print(json.dumps({what: [_plain(run) for run in listed], "size_bytes": sum(run.size_bytes for run in listed)}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("run", "ago", "verdict", "cases", "size", "command"):
        table.add_column(
            column,
            no_wrap=column != "command",
            overflow="fold",
            justify="right" if column in ("cases", "size") else "left",
        )
    for run in listed:
        ago = age((datetime.now(UTC) - run.at).total_seconds())
        state = "going on" if run.going_on else run.verdict or "no results"
        table.add_row(run.folder.name, ago, state, _cases(run), format_size(run.size_bytes), " ".join(run.command))
    if listed:
        rows(table)
    total = format_size(sum(run.size_bytes for run in listed))
    err.print(f"{len(listed)} {what.replace('_', ' ')}, {total}", highlight=False)


def _cases(run: Run) -> str:
    """Return the number of cases, with the total if the run ended early."""
    if run.partial is None:
        return str(run.cases or "")
    return f"{run.partial.ended} of {'?' if run.partial.wanted is None else run.partial.wanted}"


def _plain(run: Run) -> dict[str, object]:
    return {
        "run": run.folder.name,
        "folder": str(run.folder),
        "at": run.at.isoformat(),
        "verdict": run.verdict or None,
        "command": list(run.command),
        "cases": run.cases,
        "partial": None if run.partial is None else run.partial.as_json(),
        "size_bytes": run.size_bytes,
        "going_on": run.going_on,
    }
