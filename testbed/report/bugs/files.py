"""Writes and reads the files of runs of bugs and suites."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UsageError
from testbed.guest.channels.kernel_log import clean
from testbed.host import untrusted_files
from testbed.report import html, result_reader, results
from testbed.report.bugs import tables, view
from testbed.report.bugs.schema import Attempt, BugDocument, Repro, Suite
from testbed.report.bugs.view import View
from testbed.report.formats import PAGE, write_atomically
from testbed.report.junit import junit
from testbed.report.ktap import ktap
from testbed.report.markdown import cell, one_line
from testbed.report.schema import Document

# Consoles that a page shows for a kernel: of the first hit, and of some tries without a result.
_SHOWN_CONSOLES = 6
_CONSOLE_LINES, _CONSOLE_BYTES = 30, 16 << 10
_LARGEST_CONSOLE = 1 << 30
# In a run of more tries the page links each try's folder, and not every log in it.
_LINKED_TRIES = 200


def read(folder: Path) -> BugDocument | None:
    """Read the results of a run of `repro`, `reduce`, `bisect` or `suite`; None if the folder is of another run.

    :raise UsageError: the file is not valid, or cannot be read.
    """
    document = result_reader.read_document(folder)
    return None if isinstance(document, Document) else document


def write(document: BugDocument, folder: Path) -> None:
    """Write the results and the page; of `repro` and `suite`, which pass or fail, also KTAP and JUnit.

    :raise HostError: the disk is full or the folder is gone.
    """
    write_atomically(results.text(document), folder / document.file_name)
    if isinstance(document, Repro | Suite):
        write_atomically(ktap(view.as_results_document(document)), folder / "results.ktap")
        write_atomically(junit(view.as_results_document(document)), folder / "junit.xml")
    write_atomically(_page(document, folder), folder / PAGE)


def _judged(document: BugDocument) -> Document:
    """Convert to the form of `results.json`.

    :raise UsageError: nothing of the run passes or fails.
    """
    if not isinstance(document, Repro | Suite):
        raise UsageError(
            f"run {document.run}: `{document.what}` passes or fails nothing; expected --format markdown, html or json"
        )
    return view.as_results_document(document)


def markdown(document: BugDocument) -> str:
    """Format a run as Markdown."""
    return "\n".join(_lines(view.bug_view(document))) + "\n"


def _lines(shown: View) -> Iterator[str]:
    yield from (f"# {cell(shown.title)}: {shown.result}", "", f"    {one_line(shown.command)}", "")
    yield from (f"Run {cell(shown.run)}: {cell(shown.reason)}.", "")
    yield from (f"- {name}: {cell(value)}" for name, value in shown.facts if value)
    for table in shown.tables:
        yield from ("", f"{table.caption}:", "")
        yield f"| {' | '.join(table.head)} |"
        yield "|---" * len(table.head) + "|"
        yield from (f"| {' | '.join(cell('; '.join(value.splitlines())) for value in row)} |" for row in table.rows)
    for tries in shown.tries:
        yield from ("", f"Tries on {cell(tries.kernel)}:", "")
        for attempt in tries.attempts:
            what = f"{attempt.number}, seed {attempt.seed}: {attempt.outcome}"
            yield f"- {what}: {cell(_reason(attempt))} (guests/{cell(attempt.evidence)})"
            yield from (f"  - {cell(text)}" for text in tables.contradictions(attempt.disks))
    if shown.smaller:
        yield from ("", "What is left of it:", "", *(f"    {clean(line)}" for line in shown.smaller.splitlines()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A try on the page. `files`: names and paths of its logs."""

    attempt: Attempt
    reason: str
    contradictions: list[str]
    after: str
    files: list[tuple[str, str]]


def _page(document: BugDocument, folder: Path) -> str:
    """Return the whole page; `folder` is the run's."""
    shown = view.bug_view(document)
    all_logs = sum(len(tries.attempts) for tries in shown.tries) <= _LINKED_TRIES
    template = html.environment().get_template("bug.html.j2")
    return template.render(
        shown=shown,
        style=html.style(),
        tries=[
            (
                tries.kernel,
                [_row(attempt, folder, all_logs) for attempt in tries.attempts],
                list(_consoles(tries.attempts, folder)),
            )
            for tries in shown.tries
        ],
    )


def _row(attempt: Attempt, folder: Path, all_logs: bool) -> _Row:
    after_s = attempt.took_s if attempt.hit_after_s is None else attempt.hit_after_s
    return _Row(
        attempt=attempt,
        reason=clean(_reason(attempt)),
        contradictions=[clean(text) for text in tables.contradictions(attempt.disks)],
        after=f"{after_s:.1f} s",
        files=html.log_links(folder, f"guests/{attempt.evidence}", all_logs=all_logs),
    )


def _reason(attempt: Attempt) -> str:
    """Return what showed the bug in a try, or why nothing did, and what its kernel complained of then."""
    complaint = tables.kernel_complaint(attempt)
    text = attempt.seen if attempt.outcome == "hit" else attempt.why
    first_line = (text or "").strip().partition("\n")[0]
    return first_line + (f"; its kernel: {complaint}" if complaint else "")


def _consoles(attempts: tuple[Attempt, ...], folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the last lines of the consoles of the first hit and of tries without a result."""
    first_hit = [attempt for attempt in attempts if attempt.outcome == "hit"][:1]
    chosen = [*first_hit, *(attempt for attempt in attempts if attempt.outcome == "trouble")]
    for attempt in chosen[:_SHOWN_CONSOLES]:
        path = f"guests/{attempt.evidence}/console.log"
        try:
            with untrusted_files.open_below(folder, path, _LARGEST_CONSOLE) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _CONSOLE_BYTES))
                lines = file.read(_CONSOLE_BYTES).decode(errors="replace").splitlines()[-_CONSOLE_LINES:]
        except OSError:
            continue
        if lines:
            yield attempt.number, [clean(line) for line in lines]


# By the name that `testbed report --format` takes.
FORMATS: dict[str, Callable[[BugDocument, Path], str]] = {
    "markdown": lambda document, _: markdown(document),
    "html": _page,
    "junit": lambda document, _: junit(_judged(document)),
    "ktap": lambda document, _: ktap(_judged(document)),
    "json": lambda document, _: results.text(document),
}
