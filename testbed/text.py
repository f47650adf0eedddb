"""Text of strangers, made fit for a terminal: what a guest, a file or a server says may hold codes that steer whoever looks at it."""

from __future__ import annotations

import re

# Sequences that a terminal obeys; everything below a space but tab and newline, DEL, and the C1 range; what turns the direction of writing.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without what could steer a terminal; lines stay lines."""
    return _CONTROL.sub("", text)
