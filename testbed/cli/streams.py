"""Replaces standard output and error by streams that remember a failed write, which is then why the command ends.

Characters that the terminal cannot show are written as escapes: a guest's output or a file name must not end a command.
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


def _terminal_encoding() -> str:
    """Return the encoding of the locale, also in Python's UTF-8 mode; UTF-8 in the C locale, which is rarely chosen on
    purpose.
    """
    encoding = locale.getencoding()
    return "utf-8" if codecs.lookup(encoding).name == "ascii" else encoding


class WatchedStreams:
    """Replaces `sys.stdout` and `sys.stderr`. A stream that the parent process has closed discards its output."""

    def __init__(self) -> None:
        self._streams: list[_Stream] = []
        sys.stdout = self._watched(sys.stdout)
        sys.stderr = self._watched(sys.stderr)

    def _watched(self, stream: TextIO | None) -> TextIO:
        raw = _Stream(os.devnull, "w") if stream is None else _Stream(stream.fileno(), "w", closefd=False)
        self._streams.append(raw)
        if stream is None:
            return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
        line_buffering = raw.isatty() or stream is sys.stderr
        encoding = _terminal_encoding() if raw.isatty() else stream.encoding
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=line_buffering)

    def failure(self) -> OSError | None:
        """Return the error of a failed write, if there was one."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:
                return error
        return next((raw.error for raw in self._streams if raw.error is not None), None)
