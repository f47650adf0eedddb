"""Matches users' regular expressions, and ours on text from a guest, in linear time by RE2.

A pattern that would keep Python's `re` busy forever cannot block this machine. RE2's syntax is Perl's without
lookaround and back-references; digits, letters and blanks are those of ASCII.
"""

from __future__ import annotations

import functools
from typing import Any

import re2

# Lines are cut to this length before they are searched.
LONGEST_LINE = 4096
_MAX_MEMORY_BYTES = 8 << 20


def compile_linear(text: str) -> Any:
    """Compile one of our own patterns; the result has the methods of an `re.Pattern` (search, match, fullmatch,
    finditer).
    """
    return re2.compile(text)


def escape(text: str) -> str:
    """Return a pattern that matches only this text."""
    return str(re2.escape(text))


class Pattern:
    """A compiled pattern; `text` is its source."""

    def __init__(self, text: str, compiled: Any) -> None:
        self.text = text
        self._compiled = compiled

    def search(self, subject: str) -> str | None:
        """Return the first match in `subject`, or None."""
        found = self._compiled.search(subject)
        return None if found is None else str(found.group())

    def spans(self, subject: str) -> list[tuple[int, int]]:
        """Return the start and end of each match in `subject`."""
        return [found.span() for found in self._compiled.finditer(subject)]

    @property
    def matches_anything(self) -> bool:
        """Whether it matches every line: `.*`, `x*`, `BUG|`. Tested on an empty line and on a control character."""
        return self.search("") is not None and self.search("\x01") is not None

    @property
    def spans_lines(self) -> bool:
        """Whether it contains a line break."""
        return "\n" in self.text or "\\n" in self.text


# Each may keep up to _MAX_MEMORY_BYTES; a bug has a few.
@functools.lru_cache(maxsize=64)
def compile_user_regex(text: str) -> Pattern:
    """Compile a user's pattern; ^ and $ match at the start and end of each line.

    :raise ValueError: it is invalid or needs too much memory; the message has RE2's reason.
    """
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY_BYTES
    try:
        re2.compile(text, options)  # first as it was written, so that an error quotes it unchanged
        return Pattern(text, re2.compile(f"(?m){text}", options))
    except re2.error as error:
        reason = error.args[0] if error.args else error
        why = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(
            f"expected a regular expression (RE2's: no lookaround, no back-references), got {text!r}: {why}"
        ) from error
