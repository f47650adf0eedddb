"""The files that a run's folder holds beside its evidence: results.json, report.html, junit.xml and results.ktap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.host import untrusted_files
from testbed.report import results
from testbed.report.html import html
from testbed.report.junit import junit
from testbed.report.ktap import ktap
from testbed.report.markdown import markdown

PAGE = "report.html"
Format = Callable[[dict[str, Any], Path], str]

# By what `testbed report --format` calls them: from results and the folder of evidence to text.
FORMATS: dict[str, Format] = {
    "markdown": lambda document, _: markdown(document),
    "html": html,
    "junit": lambda document, _: junit(document),
    "ktap": lambda document, _: ktap(document),
    "json": lambda document, _: results.text(document),
}
# In the order in which they are written: what others are made from first.
_FILES = {"results.json": "json", "results.ktap": "ktap", "junit.xml": "junit", PAGE: "html"}


def write(document: dict[str, Any], folder: Path) -> None:
    """All of them.

    :raise HostError: the disk is full or the folder is gone.
    """
    for name, kind in _FILES.items():
        write_atomically(FORMATS[kind](document, folder), folder / name)


def write_atomically(text: str, path: Path) -> None:
    """Write a file that is there as a whole or not at all, beside what else a folder holds that may be a stranger's.

    :raise HostError: it cannot be written.
    """
    try:
        untrusted_files.write_below(path.parent, path.name, text)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {error.strerror}") from error
