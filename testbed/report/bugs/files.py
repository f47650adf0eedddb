"""Runs of bugs and of suites as files: what they leave beside their guests' logs, and how they are read again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from testbed.errors import UsageError
from testbed.guest.channels.kernel_log import clean
from testbed.host import untrusted_files
from testbed.report import html, result_reader
from testbed.report import runs as store
from testbed.report.bugs import tables, view
from testbed.report.bugs.schema import MODELS
from testbed.report.bugs.view import View
from testbed.report.formats import PAGE, Format, write_atomically
from testbed.report.junit import junit
from testbed.report.ktap import ktap
from testbed.report.markdown import cell, one_line

# Tries of a kernel that a page shows the console of: the first hit, and some that came to nothing.
_SHOWN_CONSOLES = 6
# Whose results pass or fail.
_JUDGED = ("repro", "suite")
_CONSOLE_LINES, _CONSOLE_BYTES = 30, 16 << 10
_LARGEST_CONSOLE = 1 << 30
# In a run of more tries each has a link to its folder, and not to every log in it.
_LINKED_TRIES = 200


def read(folder: Path) -> dict[str, Any] | None:
    """What a run of `repro`, `reduce`, `bisect` or `suite` has left; None where the folder is of no such run.

    :raise UsageError: it is not what it should be.
    """
    return result_reader.read_document(folder) if store.results(folder) in MODELS else None


def write(document: dict[str, Any], folder: Path) -> None:
    """The document and the page; of `repro`, whose kernels are each as they must be or not, and of `suite` what CI systems read as well.

    :raise HostError: the disk is full or the folder is gone.
    """
    write_atomically(_text(document), folder / f"{document['what']}.json")
    if document["what"] in _JUDGED:
        write_atomically(ktap(view.as_results_document(document)), folder / "results.ktap")
        write_atomically(junit(view.as_results_document(document)), folder / "junit.xml")
    write_atomically(_page(document, folder), folder / PAGE)


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def _verdicts(document: dict[str, Any]) -> dict[str, Any]:
    """As the results of other runs are.

    :raise UsageError: nothing of it is a test that passes or fails.
    """
    if document["what"] not in _JUDGED:
        raise UsageError(
            f"run {document['run']}: `{document['what']}` passes or fails nothing; expected --format markdown, html or json"
        )
    return view.as_results_document(document)


def markdown(document: Mapping[str, Any]) -> str:
    """The whole text."""
    shown = view.bug_view(document)
    return "\n".join(_lines(shown)) + "\n"


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
        for one in tries.attempts:
            yield f"- {one['number']}, seed {one['seed']}: {one['outcome']}: {cell(_said(one))} (guests/{cell(one['evidence'])})"
            yield from (f"  - {cell(text)}" for text in tables.contradictions(one))
    if shown.smaller:
        yield from ("", "What is left of it:", "", *(f"    {clean(line)}" for line in shown.smaller.splitlines()))


def _page(document: Mapping[str, Any], folder: Path) -> str:
    """The whole page; `folder` holds the evidence."""
    shown = view.bug_view(document)
    whole = sum(len(tries.attempts) for tries in shown.tries) <= _LINKED_TRIES
    template = html.environment().get_template("bug.html.j2")
    return template.render(
        shown=shown,
        style=html.style(),
        tries=[
            (
                tries.kernel,
                [_try(one, folder, whole) for one in tries.attempts],
                list(_consoles(tries.attempts, folder)),
            )
            for tries in shown.tries
        ],
    )


def _try(one: Mapping[str, Any], folder: Path, whole: bool) -> dict[str, Any]:
    after_s = one["took_s"] if one["hit_after_s"] is None else one["hit_after_s"]
    return {
        **one,
        "said": clean(_said(one)),
        "contradictions": [clean(text) for text in tables.contradictions(one)],
        "after": f"{after_s:.1f} s",
        "files": html.files(folder, f"guests/{one['evidence']}", whole=whole),
    }


def _said(one: Mapping[str, Any]) -> str:
    """What was seen of the bug in a try, or why not, and what its kernel complained of then."""
    complaint = tables.kernel_complaints(one)
    return _first(one["seen"] if one["outcome"] == "hit" else one["why"]) + (
        f"; its kernel: {complaint}" if complaint else ""
    )


def _first(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _consoles(attempts: tuple[Mapping[str, Any], ...], folder: Path) -> Iterator[tuple[int, list[str]]]:
    """The last lines of the consoles that say most."""
    hits = [one for one in attempts if one["outcome"] == "hit"][:1]
    for one in [*hits, *(one for one in attempts if one["outcome"] == "trouble")][:_SHOWN_CONSOLES]:
        try:
            with untrusted_files.open_below(folder, f"guests/{one['evidence']}/console.log", _LARGEST_CONSOLE) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _CONSOLE_BYTES))
                lines = file.read(_CONSOLE_BYTES).decode(errors="replace").splitlines()[-_CONSOLE_LINES:]
        except OSError:
            continue
        if lines:
            yield one["number"], [clean(line) for line in lines]


# By what `testbed report --format` calls them.
FORMATS: dict[str, Format] = {
    "markdown": lambda document, _: markdown(document),
    "html": _page,
    "junit": lambda document, _: junit(_verdicts(document)),
    "ktap": lambda document, _: ktap(_verdicts(document)),
    "json": lambda document, _: _text(document),
}
