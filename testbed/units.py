"""Sizes and rates with units, read and written as people of this field write them: `2G`, `512M`, `33554432`."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.ASCII)


def parse_size(text: str | int) -> int:
    """`"2G"`, `"512MiB"` or `4096` in bytes; suffixes are powers of 1024, as in QEMU.

    :raise ValueError: not a size; says what was expected.
    """
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise ValueError(f"expected a size such as 2G, got {text!r}")
    match = _SIZE.fullmatch(str(text).strip())
    if match is None or len(match[1]) > 15:
        raise ValueError(f"expected a size such as 2G, got {text!r}")
    return int(match[1]) * _FACTORS[match[2]]


def format_size(size_bytes: float) -> str:
    """Bytes for a person: exact when a whole number of a unit, else one decimal."""
    for suffix, factor in (("T", 1 << 40), ("G", GIB), ("M", MIB), ("K", KIB)):
        if abs(size_bytes) >= factor:
            whole, rest = divmod(size_bytes, factor)
            return f"{int(whole)}{suffix}" if rest == 0 else f"{size_bytes / factor:.1f}{suffix}"
    return f"{size_bytes:.0f}"
