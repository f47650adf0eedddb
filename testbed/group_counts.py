"""What a guest's agent says of its control groups' counters, as values. Pure: lines in, numbers out; a guest chooses these bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from testbed import numbers as strict
from testbed.errors import ReadingError

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
# What the agent answers to other questions, of whom nobody may have waited for the end.
_OTHERS = frozenset({"waiting", "ready", "disks", "shell", "time", "frozen"})
_EXPECTED = "`group name=HEX KEY=N ... io=MAJ:MIN,N,N,N,N;...` or `gone name=HEX`"


def parse(lines: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """By control group what it has counted, `io` by MAJ:MIN; None for one that is gone. Answers to other questions are left out.

    :raise ReadingError: a line is something else.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for number, line in enumerate(lines, 1):
        where = f"agent: line {number} of its counters"
        verb, *words = line.split() or [""]
        said = dict(word.partition("=")[::2] for word in words)
        name = _name(said.get("name", ""))
        if verb in _OTHERS:
            continue
        if not name or verb not in ("gone", "group"):
            raise ReadingError(where, _EXPECTED, line)
        if verb == "gone":
            found[name] = None
            continue
        # Without a controller the agent has nothing to say of some, and says so.
        numbers = {ours: strict.whole(said[theirs], f"{where}, {theirs}") for theirs, ours in _NUMBERS.items() if theirs in said}
        found[name] = {**numbers, "io": _moved(said.get("io", ""), where)}
    return found


def _name(hexadecimal: str) -> str:
    try:
        return bytes.fromhex(hexadecimal[: 2 * _LONGEST_NAME]).decode(errors="replace")
    except ValueError:
        return ""


def _moved(text: str, where: str) -> dict[str, dict[str, int]]:
    found = {}
    for part in text.split(";") if text else ():
        device, *numbers = part.split(",")
        if len(numbers) != len(_MOVED):
            raise ReadingError(where, _EXPECTED, part)
        found[device] = {name: strict.whole(number, f"{where}, {device} {name}") for name, number in zip(_MOVED, numbers, strict=True)}
    return found
