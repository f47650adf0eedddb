"""Numbers in text that a guest chose: what the kernel prints, or an error that names the place. The one parser of a guest's numbers.

`int` takes more than the kernel prints: digits of every script, underscores, blanks, a sign; and it raises ValueError for `²`, for nothing,
and for more than 4,300 digits. Every `where` names the guest, the file and the line.
"""

from __future__ import annotations

import re

from testbed.errors import ReadingError

# The kernel's counters are u64: at most 18446744073709551615.
_BELOW = 1 << 64
_WHOLE = re.compile(r"[0-9]{1,20}")
_SIGNED = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")
_HEXADECIMAL = re.compile(r"[0-9a-f]{1,16}")


def whole(text: str, where: str, *, below: int = _BELOW) -> int:
    """A whole number, 0 to `below`, in ASCII digits.

    :raise ReadingError: it has another form, or is larger.
    """
    if _WHOLE.fullmatch(text) and (number := int(text)) < below:
        return number
    raise ReadingError(where, f"a whole number below {'2**64' if below == _BELOW else below}", text)


def signed(text: str, where: str) -> int:
    """A whole number that may be negative.

    :raise ReadingError: it has another form, or is larger than 64 bits hold.
    """
    if _SIGNED.fullmatch(text) and -(_BELOW >> 1) <= (number := int(text)) < _BELOW >> 1:
        return number
    raise ReadingError(where, "a whole number of 64 bits", text)


def decimal(text: str, where: str) -> float:
    """A number such as 12 or 0.25, without sign and exponent.

    :raise ReadingError: it has another form.
    """
    if _DECIMAL.fullmatch(text):
        return float(text)
    raise ReadingError(where, "a number such as 12 or 0.25", text)


def hexadecimal(text: str, where: str) -> int:
    """A number of at most 64 bits in lower-case hexadecimal digits, without a prefix.

    :raise ReadingError: it has another form.
    """
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    raise ReadingError(where, "a hexadecimal number of at most 16 digits", text)
