"""Ages, sizes and lists as options have them."""

from __future__ import annotations

import re

from testbed.errors import UsageError
from testbed.units import parse_size

_AGE = re.compile(r"(\d{1,6})\s*(s|min|h|d|w)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def age_s(option: str, text: str) -> float:
    """Seconds of an age such as `30d`.

    :raise UsageError: it is none.
    """
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} {text}: expected an age such as 30d, 12h or 2w")
    return float(found[1]) * _SECONDS[found[2]]


def size_bytes(option: str, text: str) -> int:
    """Bytes of a size such as `2G`.

    :raise UsageError: it is none.
    """
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from error


def names(option: str, text: str) -> tuple[str, ...]:
    """The kernels of a list such as `debian-6.1,debian-6.12`.

    :raise UsageError: one of them is empty, as an unset variable of the shell leaves it, or is there twice.
    """
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise UsageError(
            f"{option} {text}: expected names with commas between, got an empty one; is a variable of the shell not set?"
        )
    for number, name in enumerate(found):
        if name in found[:number]:
            raise UsageError(f"{option}: expected each kernel once, got {name} twice")
    return found
