"""Keeps the results of a command's run up to date in its folder, however the command ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from testbed.cli.app import ended_by, in_run_folder
from testbed.report.result_writer import D, ResultWriter


@contextlib.contextmanager
def writing_results(
    folder: Path, document: Callable[[str | None], D], write: Callable[[D, Path], None], note: Callable[[str], None]
) -> Iterator[ResultWriter[D]]:
    """Run a block whose results go to `folder`.

    Results of a run that ends early are written with the reason, and `note` gets how far it came.
    """
    with in_run_folder(folder):
        writer = ResultWriter(folder, document, write)
        try:
            yield writer
        except BaseException as error:
            if (partial := writer.end_early(ended_by(error))) is not None:
                note(f"broken off: {partial}")
            raise
