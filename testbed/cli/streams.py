"""Our standard output and error, which remember why they could not be written: whatever ends a command then, that is the reason.

What the terminal has no character for is written as an escape: a guest's word, or a name of a file, ends no command.
"""

from __future__ import annotations

import codecs
import io
import locale
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Stream(io.FileIO):
    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _terminals() -> str:
    """What a terminal shows: its locale's encoding, also in Python's UTF-8 mode; UTF-8 in the C locale, which is mostly no choice."""
    own = locale.getencoding()
    return "utf-8" if codecs.lookup(own).name == "ascii" else own


class Watched:
    """Both, in the place of Python's own; where one was closed by whoever started us, what is printed there goes nowhere."""

    def __init__(self) -> None:
        self._streams: list[_Stream] = []
        sys.stdout = self._watched(sys.stdout)
        sys.stderr = self._watched(sys.stderr)

    def _watched(self, stream: TextIO | None) -> TextIO:
        raw = _Stream(os.devnull, "w") if stream is None else _Stream(stream.fileno(), "w", closefd=False)
        self._streams.append(raw)
        if stream is None:
            return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
        at_once = raw.isatty() or stream is sys.stderr
        encoding = _terminals() if raw.isatty() else stream.encoding
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=at_once)

    def failure(self) -> OSError | None:
        """Why what was printed could not be written, where that is so."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:
                return error
        return next((raw.error for raw in self._streams if raw.error is not None), None)
