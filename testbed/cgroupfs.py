"""Parses the kernel's cgroup files. Formats: Documentation/admin-guide/cgroup-v2.rst.

The parsers are strict: a malformed or unterminated line is an error that names the file and the line, because a counter
that cannot be parsed is not zero. `where` names the guest and the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from testbed.errors import ReadingError
from testbed.units import is_digits, parse_whole

# Where every guest mounts cgroup v2.
ROOT = "/sys/fs/cgroup"
# The keys that block/blk-cgroup.c prints for a device that has done any I/O: all of them, or none.
MOVED = ("rbytes", "wbytes", "rios", "wios", "dbytes", "dios")
# bdi_dev_name() of a disk that is being removed (mm/backing-dev.c).
_REMOVED = "(unknown)"
_EXPECTED_IO_STAT = "`MAJ:MIN rbytes=N wbytes=N rios=N wios=N dbytes=N dios=N`"


def _lines(text: str, where: str) -> list[str]:
    """Split a file into lines.

    :raise ReadingError: the last line has no newline.
    """
    if text and not text.endswith("\n"):
        raise ReadingError(where, "a line's end at its end", text[-60:])
    return text.split("\n")[:-1]


def parse_flat(text: str, where: str) -> dict[str, int]:
    """Parse a flat keyed file such as memory.stat: one `name number` per line.

    :raise ReadingError: a line is malformed, or a name occurs twice.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(_lines(text, where), 1):
        name, blank, value = line.partition(" ")
        if not (name and blank) or name in found:
            raise ReadingError(f"{where}, line {number}", "`name number`, each name once", line)
        found[name] = parse_whole(value, f"{where}, line {number}")
    return found


def parse_key(text: str, name: str, where: str) -> int:
    """Parse one number of a flat keyed file.

    :raise ReadingError: as `parse_flat`, or there is no such name.
    """
    found = parse_flat(text, where)
    if name not in found:
        raise ReadingError(where, f"a line `{name} number`", ", ".join(found) or "nothing")
    return found[name]


def parse_single(text: str, where: str) -> int:
    """Parse a file that is a single number, such as memory.current.

    :raise ReadingError: it is not a number.
    """
    lines = _lines(text, where)
    if len(lines) != 1:
        raise ReadingError(where, "one line with a number", text)
    return parse_whole(lines[0], where)


def parse_value(text: str, key: str, where: str) -> int:
    """Parse the number after `key` in a file with a line `key number`, or the only number of a file if `key` is empty.

    Other lines may have any form: file and key come from the user.

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
    """Parse io.stat, lines of `MAJ:MIN rbytes=N wbytes=N ...`, to numbers by device.

    A device without I/O has no line, or only its number. Keys of other controllers (`cost.usage=12`, `depth=max`) are
    returned if their values are integers.

    :raise ReadingError: a line is malformed, or lacks one of `MOVED`.
    """
    devices: dict[str, dict[str, int]] = {}
    *whole, rest = text.split("\n")
    # Some kernels from 5.15 to 6.0 print no newline after a device without I/O: `7:1 7:0 254:0 rbytes=...`. Such
    # devices may also be the last.
    if rest and not (rest.endswith(" ") and all(map(is_device, rest[:-1].split(" ")))):
        raise ReadingError(where, "a line's end at its end", rest)
    for number, line in enumerate([*whole, *([rest] if rest else [])], 1):
        at = f"{where}, line {number}"
        device = ""
        for word in line.split():
            name, equals, value = word.partition("=")
            if is_device(word) or word == _REMOVED:
                device = word
                if devices.setdefault(device, {}) and device != _REMOVED:
                    raise ReadingError(at, "each device once", line)
            elif not (device and name and equals) or (name in devices[device] and device != _REMOVED):
                raise ReadingError(at, _EXPECTED_IO_STAT, line)
            elif name in MOVED or is_digits(value, 19):
                devices[device][name] = parse_whole(value, f"{at}, {name}")
        if not device:
            raise ReadingError(at, _EXPECTED_IO_STAT, line)
    devices.pop(_REMOVED, None)
    for device, counters in devices.items():
        if 0 < len(counters.keys() & set(MOVED)) < len(MOVED):
            raise ReadingError(f"{where}, {device}", _EXPECTED_IO_STAT, " ".join(counters))
    return devices


def is_device(word: str) -> bool:
    """Whether it is a device number MAJ:MIN."""
    major, colon, minor = word.partition(":")
    return bool(colon) and is_digits(major, 7) and is_digits(minor, 7)


def bytes_moved(before: str, after: str, device: str, counter: str, where: str) -> int:
    """Return the growth of a device's counter, one of `MOVED`, between two readings of io.stat. A device without a line
    counts 0.

    :raise ReadingError: a reading is malformed, the device is gone, or its counter has shrunk.
    """
    first, last = (parse_io_stat(text, where).get(device) for text in (before, after))
    if last is None and first:
        raise ReadingError(f"{where}, {device}", f"a line as before, with {counter}={first.get(counter, 0)}", "none")
    return growth((first or {}).get(counter, 0), (last or {}).get(counter, 0), f"{where}, {device} {counter}")


def growth(before: int, after: int, where: str) -> int:
    """Return the growth of a monotonic counter.

    :raise ReadingError: it has shrunk or wrapped.
    """
    if after < before:
        raise ReadingError(where, f"at least {before}, as before", str(after))
    return after - before


# The agent's answer about its cgroups ------------------------------------------------------------
# Keys of the agent's answer, and ours.
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
_AGENT_IO = ("rbytes", "wbytes", "rios", "wios")
_LONGEST_NAME = 4096
# First words of the agent's answers to other requests, which may arrive late.
_OTHER_ANSWERS = frozenset({"waiting", "ready", "disks", "shell", "time", "frozen"})
_EXPECTED_ANSWER = "`group name=HEX KEY=N ... io=MAJ:MIN,N,N,N,N;...` or `gone name=HEX`"


def parse_group_counts(lines: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """Parse the agent's counters by cgroup, `io` by MAJ:MIN; None for a cgroup that is gone. Answers to other requests
    are skipped.

    :raise ReadingError: a line is malformed.
    """
    cgroups: dict[str, dict[str, Any] | None] = {}
    for number, line in enumerate(lines, 1):
        where = f"agent: line {number} of its counters"
        verb, *words = line.split() or [""]
        fields = dict(word.partition("=")[::2] for word in words)
        name = _name(fields.get("name", ""))
        if verb in _OTHER_ANSWERS:
            continue
        if not name or verb not in ("gone", "group"):
            raise ReadingError(where, _EXPECTED_ANSWER, line)
        if verb == "gone":
            cgroups[name] = None
            continue
        # The agent leaves out the counters of controllers that the cgroup does not have.
        numbers = {
            ours: parse_whole(fields[theirs], f"{where}, {theirs}")
            for theirs, ours in _NUMBERS.items()
            if theirs in fields
        }
        cgroups[name] = {**numbers, "io": _parse_io(fields.get("io", ""), where)}
    return cgroups


def _name(hexadecimal: str) -> str:
    try:
        return bytes.fromhex(hexadecimal[: 2 * _LONGEST_NAME]).decode(errors="replace")
    except ValueError:
        return ""


def _parse_io(text: str, where: str) -> dict[str, dict[str, int]]:
    devices = {}
    for part in text.split(";") if text else ():
        device, *numbers = part.split(",")
        if len(numbers) != len(_AGENT_IO):
            raise ReadingError(where, _EXPECTED_ANSWER, part)
        devices[device] = {
            name: parse_whole(number, f"{where}, {device} {name}")
            for name, number in zip(_AGENT_IO, numbers, strict=True)
        }
    return devices
