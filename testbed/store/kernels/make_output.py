"""Parses what make prints: compiled objects, progress, errors."""

from __future__ import annotations

import re

# "  CC      drivers/block/loop.o", also with [M].
_COMPILED = re.compile(r"^  (?:CC|AS)(?: \[M\])?\s+(?P<object>\S+\.o)$")


def compiled_object(line: str) -> str | None:
    """Return the object that a line of make's output names as compiled, or None."""
    match = _COMPILED.match(line)
    return match["object"] if match else None


# The remaining time is estimated after this many objects.
_MIN_OBJECTS = 20


def estimate_progress(before: int, done: int, usual: int, elapsed_s: float) -> tuple[float | None, str]:
    """Return the progress as a number from 0 to 1 and in words, with the remaining time.

    `before`: objects that were there already; `done`: objects made since, in `elapsed_s`; `usual`: number of objects of
    such a build.
    """
    there = before + done
    if usual <= there:
        return None, f"{done} objects"
    left_s = elapsed_s * (usual - there) / done if done >= _MIN_OBJECTS else None
    left = (
        ""
        if left_s is None
        else f", about {left_s / 60:.0f} min left"
        if left_s >= 90
        else f", about {left_s:.0f} s left"
    )
    return there / usual, f"{there} of about {usual} objects{left}"


_ERROR = re.compile(r"(?:\berror: |\bfatal error: |undefined reference to|No rule to make target|: error$|\*\*\* )")
_AFTER_ERROR = 4
# What compilers, linkers and make print if this machine is at fault (errno(3); gcc's driver), outside of quoted source.
_MACHINE = (
    "No space left on device",
    "Disk quota exceeded",
    "Killed signal terminated program",
    "Cannot allocate memory",
    "virtual memory exhausted",
    "out of memory allocating",
)
_QUOTED = re.compile(r"[ \t]*[0-9]* \|")


def machine_error(output: str) -> str | None:
    """Return the line that names a fault of this machine, and not of the source, or None."""
    lines = (line for line in output.splitlines() if any(words in line for words in _MACHINE))
    return next((line.strip() for line in lines if not _QUOTED.match(line)), None)


def first_error(output: str) -> str:
    """Return the first error of a compiler, linker or make in its output, with the lines that show where."""
    lines = output.splitlines()
    at = next((number for number, line in enumerate(lines) if _ERROR.search(line)), None)
    if at is None:
        return "\n    ".join(lines[-_AFTER_ERROR:]) or "make gave no reason"
    return "\n    ".join(lines[at : at + 1 + _AFTER_ERROR])
