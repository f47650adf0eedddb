"""A run's results in its folder as they come: whatever ends the run, what was known by then can be read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.host import eventlog
from testbed.report import formats, partial, results
from testbed.report.partial import Partial

# Takes why the run ended early, empty while it goes on, and returns the results so far; None: they are complete.
Document = Callable[[str | None], dict[str, Any]]
# Writes all files of a run's folder that are made from its results.
Write = Callable[[dict[str, Any], Path], None]
# Held until a run ends, and given free for its files where the disk is full by then; a page takes 2 MiB.
_RESERVE_BYTES = 4 << 20


class ResultWriter:
    """Keeps the results of one run in its folder."""

    def __init__(self, folder: Path, document: Document, write: Write) -> None:
        self._folder, self._document, self._write = folder, document, write
        self._finished = False
        self._reserve = contextlib.ExitStack()
        try:
            # It has no name: nothing of it stays where the run is killed.
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the stack
            self._reserve.enter_context(file)
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
        except OSError:
            self._reserve.close()

    def update(self) -> None:
        """A result has come. A disk that is full does not take it now; what it has from before stays, and the end tries again."""
        document = self._document("")
        with contextlib.suppress(HostError):
            formats.write_atomically(results.text(document), self._folder / results.results_file(document))

    def finish(self) -> tuple[dict[str, Any], HostError | None]:
        """Write the complete results, and what is made from them; returned even where they cannot be written, with the error."""
        self._finished = True
        document = self._document(None)
        return document, self._written(document)

    def finished(self) -> dict[str, Any]:
        """Write the complete results, and what is made from them.

        :raise HostError: they cannot be written.
        """
        document, unwritten = self.finish()
        if unwritten is not None:
            raise unwritten
        return document

    def broken_off(self, why: str) -> Partial | None:
        """Write what is known of a run that ends early; None where it had finished."""
        if self._finished:
            return None
        document = self._document(why)
        if (error := self._written(document)) is not None:
            eventlog.log_event(str(error), failed=True)
        return partial.read_partial(document)

    def _written(self, document: dict[str, Any]) -> HostError | None:
        self._reserve.close()
        try:
            self._write(document, self._folder)
        except HostError as error:
            return error
        return None
