"""Parses option values that are plain text: ages, sizes, durations, shares, lists of kernels."""

from __future__ import annotations

import re

from testbed.errors import UsageError
from testbed.units import format_duration, parse_duration, parse_size

_AGE = re.compile(r"(\d{1,6})\s*(s|min|h|d|w)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MIN_SAMPLE_US = 50_000


def age_s(option: str, text: str) -> float:
    """Return the seconds of an age such as `30d`.

    :raise UsageError: the text is not an age.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text}: expected an age such as 30d, 12h or 2w")
    return float(match[1]) * _SECONDS[match[2]]


def size_bytes(option: str, text: str) -> int:
    """Return the bytes of a size such as `2G`.

    :raise UsageError: the text is not a size.
    """
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from error


def kernel_names(option: str, text: str) -> tuple[str, ...]:
    """Return the kernels of a list such as `debian-6.1,debian-6.12`.

    :raise UsageError: a name is empty, as an unset shell variable leaves it, or occurs twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(
            f"{option} {text}: expected names with commas between, got an empty one; "
            "is a variable of the shell not set?"
        )
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(f"{option}: expected each kernel once, got {name} twice")
    return names


def timeout_s(text: str) -> float:
    """Return the seconds of `--timeout`.

    :raise UsageError: the text is not a duration, or is zero.
    """
    try:
        seconds = parse_duration(text) / 1e6
    except ValueError as error:
        raise UsageError(f"--timeout {text}: {error}") from None
    if not seconds:
        raise UsageError("--timeout 0: expected more than nothing, such as 90s")
    return seconds


def sample_interval_s(text: str) -> float | None:
    """Return the seconds of `--sample`; None for `off`.

    :raise UsageError: the text is not a duration, or is below the shortest interval.
    """
    if text == "off":
        return None
    try:
        microseconds = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--sample {text}: {error}, or off") from error
    if microseconds < _MIN_SAMPLE_US:
        raise UsageError(f"--sample {text}: expected at least {format_duration(_MIN_SAMPLE_US)}, or off")
    return microseconds / 1e6


def share(option: str, text: str) -> float:
    """Return a share such as `95%` or `0.95` as a fraction.

    :raise UsageError: the text is not a share between 0 and 1.
    """
    try:
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1:
        raise UsageError(f"{option} {text}: expected a share between 0 % and 100 %, such as 95%")
    return fraction
