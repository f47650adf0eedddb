"""Parses what make prints: compiled objects, progress, errors."""

from __future__ import annotations

import re

# "  CC      drivers/block/loop.o", also with [M].
_COMPILED = re.compile(r"^  (?:CC|AS)(?: \[M\])?\s+(?P<object>\S+\.o)$")


def compiled_object(line: str) -> str | None:
    """The object that a line of make's says to be compiled, or None."""
    match = _COMPILED.match(line)
    return match["object"] if match else None


# Objects after which the time of the others can be told.
_TELLING = 20


def progress(before: int, done: int, usual: int, elapsed_s: float) -> tuple[float | None, str]:
    """What is done, 0 to 1, and in words, with the time that is left.

    `before`: objects that were there already; `done`: that were made since, in `elapsed_s`; `usual`: how many such a build has.
    """
    there = before + done
    if usual <= there:
        return None, f"{done} objects"
    left_s = elapsed_s * (usual - there) / done if done >= _TELLING else None
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
# What compilers, linkers and make say where this machine is at fault (errno(3); gcc's driver); not what they quote of a source.
_MACHINE = (
    "No space left on device",
    "Disk quota exceeded",
    "Killed signal terminated program",
    "Cannot allocate memory",
    "virtual memory exhausted",
    "out of memory allocating",
)
_QUOTED = re.compile(r"[ \t]*[0-9]* \|")


def machine_error(said: str) -> str | None:
    """The line that says that this machine is at fault, and not what is built, or None."""
    lines = (line for line in said.splitlines() if any(words in line for words in _MACHINE))
    return next((line.strip() for line in lines if not _QUOTED.match(line)), None)


def first_error(said: str) -> str:
    """The first error of a compiler, linker or make in what they said, with the lines that show where."""
    lines = said.splitlines()
    at = next((number for number, line in enumerate(lines) if _ERROR.search(line)), None)
    if at is None:
        return "\n    ".join(lines[-_AFTER_ERROR:]) or "make gave no reason"
    return "\n    ".join(lines[at : at + 1 + _AFTER_ERROR])
