"""Parses and formats sizes and durations with units (`2G`, `5ms`), and parses numbers that a guest printed.

A guest's numbers are parsed only here. `int` accepts more than the kernel prints: digits of every script, underscores,
blanks, a sign; and it raises ValueError for `²`, for an empty string, and for more than 4,300 digits. Every `where`
names the guest, the file and the line.
"""

from __future__ import annotations

import re

from testbed.errors import ReadingError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
# loff_t of Linux, and int64_t of QEMU's block layer.
_MOST_BYTES = (1 << 63) - 1
_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(?:iB)?|B)?", re.ASCII)
_DECIMAL = re.compile(r"(\d+)\s*([kKMGT])[bB]", re.ASCII)


def parse_size(text: str | int) -> int:
    """Return the bytes of `"2G"`, `"512MiB"` or `4096`; suffixes are powers of 1024, as in QEMU. `GB` is ambiguous and
    refused.

    :raise ValueError: not a size; the message has what was expected.
    """
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise ValueError(f"expected a size such as 2G, got {text!r}")
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"expected a size such as 2G, got {text!r}{_decimal_hint(str(text).strip())}")
    size_bytes = int(match[1]) * _FACTORS[match[2] or ""] if len(match[1]) < 20 else _MOST_BYTES + 1
    if size_bytes > _MOST_BYTES:
        raise ValueError(f"expected a size such as 2G, of less than 2**63 bytes, got {text!r}")
    return size_bytes


def _decimal_hint(text: str) -> str:
    """Return what to write instead of a size such as `2GB`, for both of its meanings."""
    match = _DECIMAL.fullmatch(text)
    if match is None or len(match[1]) > 15:
        return ""
    number, unit = int(match[1]), match[2].upper()
    binary, decimal = number * _FACTORS[unit], number * 1000 ** ("KMGT".index(unit) + 1)
    return f"; write {number}{unit}iB for {binary} bytes (powers of 1024), or {decimal}"


def format_size(size_bytes: float) -> str:
    """Format bytes: exact for a whole number of a unit, otherwise with one decimal."""
    for suffix, factor in (("T", 1 << 40), ("G", GIB), ("M", MIB), ("K", KIB)):
        if abs(size_bytes) >= factor:
            whole, rest = divmod(size_bytes, factor)
            return f"{int(whole)}{suffix}" if rest == 0 else f"{size_bytes / factor:.1f}{suffix}"
    return f"{size_bytes:.0f}"


_DURATION = re.compile(r"(\d+(?:\.\d{1,6})?)\s*(us|ms|s|min)", re.ASCII)
_MICROSECONDS = {"us": 1, "ms": 1000, "s": 1_000_000, "min": 60_000_000}


def parse_duration(text: str | int) -> int:
    """Return the microseconds of `"5ms"`, `"400us"`, `"1.5s"` or `"2min"`; 0 needs no unit.

    :raise ValueError: not a duration; the message has what was expected.
    """
    if text == 0 and not isinstance(text, bool):
        return 0
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or len(match[1]) > 12:
        raise ValueError(f"expected a duration such as 5ms, got {text!r}")
    return round(float(match[1]) * _MICROSECONDS[match[2]])


def format_duration(microseconds: float) -> str:
    """Format microseconds in the largest unit that gives at least 1; exact for whole numbers."""
    for unit in ("min", "s", "ms"):
        if microseconds >= _MICROSECONDS[unit]:
            return f"{microseconds / _MICROSECONDS[unit]:.12g}{unit}"
    return f"{microseconds:.12g}us"


# Numbers that a guest printed ------------------------------------------------------------------------
# The kernel's counters are u64: at most 18446744073709551615.
_BELOW = 1 << 64
_MOST_DIGITS = 20


def is_digits(text: str, most: int = _MOST_DIGITS) -> bool:
    """Whether it is at most `most` ASCII digits and nothing else."""
    return len(text) <= most and text.isascii() and text.isdecimal()


def is_number(text: str) -> bool:
    """Whether it is ASCII digits with or without a fraction, at most 20 of each."""
    before, point, after = text[: 2 * _MOST_DIGITS + 2].partition(".")
    return is_digits(before) and (not point or is_digits(after))


def parse_whole(text: str, where: str, *, below: int = _BELOW) -> int:
    """Parse an integer from 0 to `below` - 1, in ASCII digits.

    :raise ReadingError: it is malformed, or too large.
    """
    if is_digits(text) and (number := int(text)) < below:
        return number
    raise ReadingError(where, f"a whole number below {'2**64' if below == _BELOW else below}", text)


def parse_decimal(text: str, where: str) -> float:
    """Parse a number such as 12 or 0.25, without sign and exponent.

    :raise ReadingError: it is malformed.
    """
    if is_number(text):
        return float(text)
    raise ReadingError(where, "a number such as 12 or 0.25", text)


def parse_octal(text: str, where: str) -> int:
    """Parse a file mode of at most 7 octal digits.

    :raise ReadingError: it is malformed.
    """
    if is_digits(text, 7) and not set(text) & {"8", "9"}:
        return int(text, 8)
    raise ReadingError(where, "an octal number of at most 7 digits", text)
