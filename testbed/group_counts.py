"""What a guest's agent says of its control groups' counters, as values. Pure: lines in, numbers out; a guest chooses these bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# The agent's words, and what they are called here.
_NUMBERS = {
    "current": "memory",
    "anon": "anon",
    "file": "file",
    "shmem": "shmem",
    "slab": "slab",
    "oom_kill": "oom_kill",
    "memory_stall": "memory_stall_us",
    "io_stall": "io_stall_us",
}
_MOVED = ("rbytes", "wbytes", "rios", "wios")
_LONGEST_NAME = 4096


def parse(lines: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """By control group what it has counted, `io` by MAJ:MIN; None for one that is gone. Lines that are something else are left out."""
    found: dict[str, dict[str, Any] | None] = {}
    for line in lines:
        verb, *words = line.split()
        said = dict(word.partition("=")[::2] for word in words)
        name = _name(said.get("name", ""))
        if verb == "gone" and name:
            found[name] = None
        elif verb == "group" and name:
            numbers = {ours: int(said[theirs]) for theirs, ours in _NUMBERS.items() if said.get(theirs, "").isdecimal()}
            found[name] = {**numbers, "io": _moved(said.get("io", ""))}
    return found


def _name(hexadecimal: str) -> str:
    try:
        return bytes.fromhex(hexadecimal[: 2 * _LONGEST_NAME]).decode(errors="replace")
    except ValueError:
        return ""


def _moved(text: str) -> dict[str, dict[str, int]]:
    found = {}
    for part in text.split(";"):
        device, *numbers = part.split(",")
        if len(numbers) == len(_MOVED) and all(number.isdecimal() for number in numbers):
            found[device] = dict(zip(_MOVED, map(int, numbers), strict=True))
    return found
