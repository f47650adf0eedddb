"""A run whose results are kept as they come, by every verb that leaves results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from testbed.cli.app import ended_by, run_going_on
from testbed.report.result_writer import Document, ResultWriter, Write


@contextlib.contextmanager
def run_kept(folder: Path, document: Document, write: Write, note: Callable[[str], None]) -> Iterator[ResultWriter]:
    """A run in this folder. What ends it early is in its results, and how far it came is noted."""
    with run_going_on(folder):
        keeper = ResultWriter(folder, document, write)
        try:
            yield keeper
        except BaseException as error:
            if (partial := keeper.broken_off(ended_by(error))) is not None:
                note(f"broken off: {partial}")
            raise
