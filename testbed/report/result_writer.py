"""Writes a run's results into its folder as they come: whatever ends the run, the results until then can be read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from testbed.errors import HostError
from testbed.host import eventlog
from testbed.report import formats, results
from testbed.report.bugs.schema import BugDocument
from testbed.report.partial import Partial
from testbed.report.schema import Document

D = TypeVar("D", bound=Document | BugDocument)
# Allocated until a run ends, and then freed for its files, in case the disk is full; a page takes 2 MiB.
_RESERVE_BYTES = 4 << 20


class ResultWriter(Generic[D]):
    """Writes the results of one run.

    `document` makes them of what is known: it takes why the run ended early, "" while it goes on, or None if it is
    complete. `write` writes all files that are made from a document.
    """

    def __init__(self, folder: Path, document: Callable[[str | None], D], write: Callable[[D, Path], None]) -> None:
        self._folder, self._document, self._write = folder, document, write
        self._finished = False
        self._reserve = contextlib.ExitStack()
        try:
            # It has no name, so that nothing stays if the run is killed.
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the stack
            self._reserve.enter_context(file)
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
        except OSError:
            self._reserve.close()

    def update(self) -> None:
        """Write the results so far. If the disk is full, the file keeps the earlier results until the run ends."""
        document = self._document("")
        with contextlib.suppress(HostError):
            formats.write_atomically(results.text(document), self._folder / document.file_name)

    def finish(self) -> tuple[D, HostError | None]:
        """Write the complete results and the files made from them. Return the results, and why they cannot be
        written."""
        self._finished = True
        document = self._document(None)
        return document, self._write_all(document)

    def finish_or_raise(self) -> D:
        """Write the complete results and the files made from them.

        :raise HostError: they cannot be written.
        """
        document, unwritten = self.finish()
        if unwritten is not None:
            raise unwritten
        return document

    def end_early(self, why: str) -> Partial | None:
        """Write the results of a run that ends early, and return how far it came; None if it had finished."""
        if self._finished:
            return None
        document = self._document(why)
        if (error := self._write_all(document)) is not None:
            eventlog.log_event(str(error), failed=True)
        return document.partial

    def _write_all(self, document: D) -> HostError | None:
        self._reserve.close()
        try:
            self._write(document, self._folder)
        except HostError as error:
            return error
        return None
