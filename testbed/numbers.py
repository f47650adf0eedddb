"""Numbers in text that a guest chose: what the kernel prints, or an error that names the place. The one parser of a guest's numbers.

`int` takes more than the kernel prints: digits of every script, underscores, blanks, a sign; and it raises ValueError for `²`, for nothing,
and for more than 4,300 digits. Every `where` names the guest, the file and the line.
"""

from __future__ import annotations

from testbed.errors import ReadingError

# The kernel's counters are u64: at most 18446744073709551615.
_BELOW = 1 << 64
_MOST_DIGITS = 20


def is_digits(text: str, most: int = _MOST_DIGITS) -> bool:
    """Whether it is ASCII digits, at most so many, and nothing else."""
    return len(text) <= most and text.isascii() and text.isdecimal()


def is_number(text: str) -> bool:
    """Whether it is ASCII digits with or without a fraction, 20 of each at most."""
    before, point, after = text[: 2 * _MOST_DIGITS + 2].partition(".")
    return is_digits(before) and (not point or is_digits(after))


def whole(text: str, where: str, *, below: int = _BELOW) -> int:
    """A whole number, 0 to `below`, in ASCII digits.

    :raise ReadingError: it has another form, or is larger.
    """
    if is_digits(text) and (number := int(text)) < below:
        return number
    raise ReadingError(where, f"a whole number below {'2**64' if below == _BELOW else below}", text)


def decimal(text: str, where: str) -> float:
    """A number such as 12 or 0.25, without sign and exponent.

    :raise ReadingError: it has another form.
    """
    if is_number(text):
        return float(text)
    raise ReadingError(where, "a number such as 12 or 0.25", text)


def octal(text: str, where: str) -> int:
    """A file's mode, in at most 7 octal digits.

    :raise ReadingError: it has another form.
    """
    if is_digits(text, 7) and not set(text) & {"8", "9"}:
        return int(text, 8)
    raise ReadingError(where, "an octal number of at most 7 digits", text)
