"""cgroup counters: the text of the kernel's files to numbers. Formats: Documentation/admin-guide/cgroup-v2.rst.

Strict: a line of another form, or one without its end, is an error that names the file and the line, because what is not understood is
not zero. `where` names the guest and the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from testbed.errors import ReadingError
from testbed.units import is_digits, parse_whole

# Where every guest mounts cgroup v2.
ROOT = "/sys/fs/cgroup"
# What block/blk-cgroup.c prints of a device that has done any I/O: all of it, or nothing.
MOVED = ("rbytes", "wbytes", "rios", "wios", "dbytes", "dios")
# bdi_dev_name() of a disk that is just being removed (mm/backing-dev.c).
_REMOVED = "(unknown)"
_EXPECTED = "`MAJ:MIN rbytes=N wbytes=N rios=N wios=N dbytes=N dios=N`"


def _lines(text: str, where: str) -> list[str]:
    """The lines of a file, all of which end.

    :raise ReadingError: the last one does not.
    """
    if text and not text.endswith("\n"):
        raise ReadingError(where, "a line's end at its end", text[-60:])
    return text.split("\n")[:-1]


def parse_flat(text: str, where: str) -> dict[str, int]:
    """A flat keyed file such as memory.stat: one `name number` a line.

    :raise ReadingError: a line has another form, or a name stands there twice.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(_lines(text, where), 1):
        name, blank, value = line.partition(" ")
        if not (name and blank) or name in found:
            raise ReadingError(f"{where}, line {number}", "`name number`, each name once", line)
        found[name] = parse_whole(value, f"{where}, line {number}")
    return found


def parse_key(text: str, name: str, where: str) -> int:
    """One number of a flat keyed file.

    :raise ReadingError: as `parse_flat`, or there is no such name.
    """
    found = parse_flat(text, where)
    if name not in found:
        raise ReadingError(where, f"a line `{name} number`", ", ".join(found) or "nothing")
    return found[name]


def parse_single(text: str, where: str) -> int:
    """The number of a file that has no other, such as memory.current.

    :raise ReadingError: it is none.
    """
    lines = _lines(text, where)
    if len(lines) != 1:
        raise ReadingError(where, "one line with a number", text)
    return parse_whole(lines[0], where)


def parse_value(text: str, key: str, where: str) -> int:
    """The number behind `key` in a file that has a line `key number`, or the only one of a file, where `key` is empty.

    Other lines may have any form: somebody else names file and key.

    :raise ReadingError: there is no such line, or it has no number.
    """
    if not key:
        return parse_single(text, where)
    named = [
        rest for name, blank, rest in (line.partition(" ") for line in _lines(text, where)) if blank and name == key
    ]
    if len(named) != 1:
        raise ReadingError(where, f"one line `{key} number`", text)
    return parse_whole(named[0], f"{where}, {key}")


def parse_io_stat(text: str, where: str) -> dict[str, dict[str, int]]:
    """io.stat: `MAJ:MIN rbytes=N wbytes=N ...` a line, to numbers by device. One without I/O has no line, or one with nothing behind it.

    What other controllers add (`cost.usage=12`, `depth=max`) is there where it is a whole number.

    :raise ReadingError: a line has another form, or lacks one of `MOVED`.
    """
    found: dict[str, dict[str, int]] = {}
    *whole, rest = text.split("\n")
    # Some kernels of 5.15 to 6.0 end no line of a device without I/O: `7:1 7:0 254:0 rbytes=...`. Such names may stand at the end as well.
    if rest and not (rest.endswith(" ") and all(map(is_device, rest[:-1].split(" ")))):
        raise ReadingError(where, "a line's end at its end", rest)
    for number, line in enumerate([*whole, *([rest] if rest else [])], 1):
        at = f"{where}, line {number}"
        device = ""
        for word in line.split():
            name, equals, said = word.partition("=")
            if is_device(word) or word == _REMOVED:
                device = word
                if found.setdefault(device, {}) and device != _REMOVED:
                    raise ReadingError(at, "each device once", line)
            elif not (device and name and equals) or (name in found[device] and device != _REMOVED):
                raise ReadingError(at, _EXPECTED, line)
            elif name in MOVED or is_digits(said, 19):
                found[device][name] = parse_whole(said, f"{at}, {name}")
        if not device:
            raise ReadingError(at, _EXPECTED, line)
    found.pop(_REMOVED, None)
    for device, counted in found.items():
        if 0 < len(counted.keys() & set(MOVED)) < len(MOVED):
            raise ReadingError(f"{where}, {device}", _EXPECTED, " ".join(counted))
    return found


def is_device(word: str) -> bool:
    """Whether it is MAJ:MIN."""
    major, colon, minor = word.partition(":")
    return bool(colon) and is_digits(major, 7) and is_digits(minor, 7)


def bytes_moved(before: str, after: str, device: str, counter: str, where: str) -> int:
    """Growth of one of `MOVED` of a device, between two texts of one io.stat. A device that has no line yet has moved nothing.

    :raise ReadingError: a text has another form, or the device is gone, or has less than before.
    """
    first, last = (parse_io_stat(text, where).get(device) for text in (before, after))
    if last is None and first:
        raise ReadingError(f"{where}, {device}", f"a line as before, with {counter}={first.get(counter, 0)}", "none")
    return growth((first or {}).get(counter, 0), (last or {}).get(counter, 0), f"{where}, {device} {counter}")


def growth(before: int, after: int, where: str) -> int:
    """How much a counter that only grows has grown.

    :raise ReadingError: it has shrunk, or wrapped.
    """
    if after < before:
        raise ReadingError(where, f"at least {before}, as before", str(after))
    return after - before


# The agent's answer about its cgroups ------------------------------------------------------------
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


def parse_group_counts(lines: Iterable[str]) -> dict[str, dict[str, Any] | None]:
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
        numbers = {
            ours: parse_whole(said[theirs], f"{where}, {theirs}") for theirs, ours in _NUMBERS.items() if theirs in said
        }
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
        found[device] = {
            name: parse_whole(number, f"{where}, {device} {name}") for name, number in zip(_MOVED, numbers, strict=True)
        }
    return found
