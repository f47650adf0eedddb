"""Sizes and rates with units, read and written as people of this field write them: `2G`, `512M`, `33554432`."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
# loff_t of Linux, and int64_t of QEMU's block layer.
_MOST_BYTES = (1 << 63) - 1
_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(?:iB)?|B)?", re.ASCII)
_DECIMAL = re.compile(r"(\d+)\s*([kKMGT])[bB]", re.ASCII)


def parse_size(text: str | int) -> int:
    """`"2G"`, `"512MiB"` or `4096` in bytes; suffixes are powers of 1024, as in QEMU. `GB` is none: some mean 1000 by it, some 1024.

    :raise ValueError: not a size; says what was expected.
    """
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise ValueError(f"expected a size such as 2G, got {text!r}")
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"expected a size such as 2G, got {text!r}{_or_decimal(str(text).strip())}")
    size_bytes = int(match[1]) * _FACTORS[match[2] or ""] if len(match[1]) < 20 else _MOST_BYTES + 1
    if size_bytes > _MOST_BYTES:
        raise ValueError(f"expected a size such as 2G, of less than 2**63 bytes, got {text!r}")
    return size_bytes


def _or_decimal(text: str) -> str:
    """What to write in place of a size in powers of 1000."""
    match = _DECIMAL.fullmatch(text)
    if match is None or len(match[1]) > 15:
        return ""
    number, unit = int(match[1]), match[2].upper()
    binary, decimal = number * _FACTORS[unit], number * 1000 ** ("KMGT".index(unit) + 1)
    return f"; write {number}{unit}iB for {binary} bytes (powers of 1024), or {decimal}"


def format_size(size_bytes: float) -> str:
    """Bytes for a person: exact when a whole number of a unit, else one decimal."""
    for suffix, factor in (("T", 1 << 40), ("G", GIB), ("M", MIB), ("K", KIB)):
        if abs(size_bytes) >= factor:
            whole, rest = divmod(size_bytes, factor)
            return f"{int(whole)}{suffix}" if rest == 0 else f"{size_bytes / factor:.1f}{suffix}"
    return f"{size_bytes:.0f}"


_DURATION = re.compile(r"(\d+(?:\.\d{1,6})?)\s*(us|ms|s|min)", re.ASCII)
_MICROSECONDS = {"us": 1, "ms": 1000, "s": 1_000_000, "min": 60_000_000}


def parse_duration(text: str | int) -> int:
    """`"5ms"`, `"400us"`, `"1.5s"` or `"2min"` in microseconds; 0 needs no unit.

    :raise ValueError: not a duration; says what was expected.
    """
    if text == 0 and not isinstance(text, bool):
        return 0
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or len(match[1]) > 12:
        raise ValueError(f"expected a duration such as 5ms, got {text!r}")
    return round(float(match[1]) * _MICROSECONDS[match[2]])


def format_duration(microseconds: float) -> str:
    """Microseconds in the largest unit of which there is at least one; exact for whole ones."""
    for unit in ("min", "s", "ms"):
        if microseconds >= _MICROSECONDS[unit]:
            return f"{microseconds / _MICROSECONDS[unit]:.12g}{unit}"
    return f"{microseconds:.12g}us"
