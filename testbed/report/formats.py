"""Writes the files of a run beside its guests' logs: results.json, report.html, junit.xml and results.ktap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from testbed.errors import HostError
from testbed.host import untrusted_files
from testbed.report import results
from testbed.report.html import html
from testbed.report.junit import junit
from testbed.report.ktap import ktap
from testbed.report.markdown import markdown
from testbed.report.schema import Document

PAGE = "report.html"
Format = Callable[[Document, Path], str]

# By the name that `testbed report --format` takes: makes text of results and the run's folder.
FORMATS: dict[str, Format] = {
    "markdown": lambda document, _: markdown(document),
    "html": html,
    "junit": lambda document, _: junit(document),
    "ktap": lambda document, _: ktap(document),
    "json": lambda document, _: results.text(document),
}
# In the order in which they are written: first the one that the others can be made from.
_FILES = {"results.json": "json", "results.ktap": "ktap", "junit.xml": "junit", PAGE: "html"}


def write(document: Document, folder: Path) -> None:
    """Write all files of a run.

    :raise HostError: the disk is full or the folder is gone.
    """
    for name, kind in _FILES.items():
        write_atomically(FORMATS[kind](document, folder), folder / name)


def write_atomically(text: str, path: Path) -> None:
    """Write a file completely or not at all. Other files of its folder may be a stranger's; no link is followed.

    :raise HostError: it cannot be written.
    """
    try:
        untrusted_files.write_below(path.parent, path.name, text)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {error.strerror}") from error
