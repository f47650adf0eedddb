"""Regular expressions that users write, and ours on text that a guest chose. They are matched by RE2, whose time grows with the text and
not with the pattern's nesting: one that would keep Python's own `re` busy for ever does not hold up this machine. Its syntax is Perl's
without lookaround and back-references; digits, letters and blanks are those of ASCII.
"""

from __future__ import annotations

import functools
from typing import Any

import re2

# Lines are cut to this before anything is looked for in them.
LONGEST_LINE = 4096
_MAX_MEMORY_BYTES = 8 << 20


def compile_linear(text: str) -> Any:
    """One of ours, compiled: it has what a pattern of Python's `re` has (search, match, fullmatch, finditer)."""
    return re2.compile(text)


def escape(text: str) -> str:
    """A pattern that matches this text alone."""
    return str(re2.escape(text))


class Pattern:
    """A compiled one; `text` is how it was written."""

    def __init__(self, text: str, compiled: Any) -> None:
        self.text = text
        self._compiled = compiled

    def search(self, subject: str) -> str | None:
        """The first part of `subject` that matches, or None."""
        found = self._compiled.search(subject)
        return None if found is None else str(found.group())

    def spans(self, subject: str) -> list[tuple[int, int]]:
        """Where each part of `subject` begins and ends that matches."""
        return [found.span() for found in self._compiled.finditer(subject)]

    @property
    def matches_anything(self) -> bool:
        """Whether it matches every line: `.*`, `x*`, `BUG|`. Told by an empty line and one that nobody looks for."""
        return self.search("") is not None and self.search("\x01") is not None

    @property
    def spans_lines(self) -> bool:
        """Whether it asks for more than one line."""
        return "\n" in self.text or "\\n" in self.text


# Each may keep up to _MAX_MEMORY_BYTES; a bug has a handful.
@functools.lru_cache(maxsize=64)
def compile_user_regex(text: str) -> Pattern:
    """The pattern in a text; ^ and $ are the begin and the end of a line.

    :raise ValueError: it is none, or would take too much memory; says what is wrong with it.
    """
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY_BYTES
    try:
        re2.compile(text, options)  # first as it is written, for what is said of it
        return Pattern(text, re2.compile(f"(?m){text}", options))
    except re2.error as error:
        said = error.args[0] if error.args else error
        why = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"expected a regular expression (RE2's: no lookaround, no back-references), got {text!r}: {why}"
        ) from error
