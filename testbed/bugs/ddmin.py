"""What can be dropped from a bug's guest, and in which order it is tried: delta debugging (A. Zeller, R. Hildebrandt, "Simplifying and
isolating failure-inducing input", 2002). Pure: candidates go out, answers come in.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.units import MIB, format_size, parse_size

_LEAST_MEMORY = 256 * MIB
_DEFAULT_CPUS, _DEFAULT_MEMORY = 2, 1024 * MIB
# What stands on other things comes before them: it can go while they stay.
_SECTIONS = (
    "swaps",
    "dm",
    "md",
    "loops",
    "files",
    "filesystems",
    "networks",
    "environment",
    "throttle-groups",
    "disks",
)
# What a disk can do without.
_OF_DISK = (
    "profile",
    "scale",
    "throttle",
    "throttle-group",
    "latency",
    "cache",
    "cache-size",
    "faults",
    "zoned",
    "partitions",
    "read-ahead",
)
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Something of a guest that may go: where it stands below the guest."""

    path: Path

    def __str__(self) -> str:
        return ".".join(str(word) for word in self.path)


def guest_of(plain: dict[str, Any]) -> dict[str, Any]:
    """The one guest's mapping in a bug that needs no other file; an empty one is put in where there is none."""
    topology = plain.get("topology")
    if topology is None:
        topology = plain["topology"] = {"guests": {"g0": {"cpus": _DEFAULT_CPUS}}}
    guests = topology["guests"]
    name = next(iter(guests))
    if guests[name] is None:
        guests[name] = {}
    found: dict[str, Any] = guests[name]
    return found


def list_parts(plain: dict[str, Any]) -> tuple[Part, ...]:
    """Everything that may go, what stands on others first."""
    return tuple(_parts(guest_of(copy.deepcopy(plain))))


def _parts(guest: dict[str, Any]) -> Iterator[Part]:
    yield from (Part(("timeline", number)) for number in range(len(guest.get("timeline") or ())))
    if "sample" in guest:
        yield Part(("sample",))
    for group, keys in (guest.get("cgroups") or {}).items():
        yield from (Part(("cgroups", group, key)) for key in keys or ())
        yield Part(("cgroups", group))
    for section in _SECTIONS:
        for name, thing in (guest.get(section) or {}).items():
            if section == "disks" and isinstance(thing, dict):
                yield from (Part((section, name, key)) for key in _OF_DISK if key in thing)
            yield Part((section, name))
    yield from (Part(("append", number)) for number in range(len(guest.get("append") or ())))


def without_parts(plain: dict[str, Any], dropped: Sequence[Part]) -> dict[str, Any]:
    """The bug without some parts; sections of which nothing is left go as well."""
    smaller = copy.deepcopy(plain)
    guest = guest_of(smaller)
    # From the end, so that numbers in lists stay right.
    for part in sorted(
        dropped,
        key=lambda part: [("", word) if isinstance(word, int) else (word, 0) for word in part.path],
        reverse=True,
    ):
        _drop(guest, part.path)
    for section in [key for key, value in guest.items() if value in ({}, [])]:
        del guest[section]
    return smaller


def _drop(guest: dict[str, Any], path: Path) -> None:
    at: Any = guest
    for word in path[:-1]:
        try:
            at = at[word]
        except (KeyError, IndexError):
            return  # what it was part of has gone
    if isinstance(at, list):
        number = path[-1]
        assert isinstance(number, int)
        at[number : number + 1] = []
    else:
        at.pop(path[-1], None)


Search = Generator[tuple[Part, ...], bool, tuple[Part, ...]]


def minimize(all_parts: Sequence[Part]) -> Search:
    """Yields what to drop, is sent whether the bug still shows without it, and returns what can be dropped: with any one part more, it does
    not show any longer."""
    kept = list(all_parts)
    dropped: list[Part] = []
    chunks = 1
    while kept:
        size = -(-len(kept) // chunks)
        for begin in range(0, len(kept), size):
            chunk = kept[begin : begin + size]
            if (yield (*dropped, *chunk)):
                dropped += chunk
                kept = kept[:begin] + kept[begin + size :]
                chunks = max(chunks - 1, 1)
                break
        else:
            if size == 1:
                break
            chunks = min(len(kept), chunks * 2)
    return tuple(dropped)


def smaller_machines(plain: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The bug on a machine with one step less, in words and as a mapping: one CPU, or half of the memory."""
    guest = guest_of(copy.deepcopy(plain))
    if guest.get("cpus", _DEFAULT_CPUS) > 1:
        yield "cpus: 1", _changed(plain, "cpus", 1)
    memory = parse_size(guest["memory"]) if "memory" in guest else _DEFAULT_MEMORY
    half = memory // 2 // MIB * MIB
    if half >= _LEAST_MEMORY:
        yield f"memory: {format_size(half)}", _changed(plain, "memory", format_size(half))


def _changed(plain: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    smaller = copy.deepcopy(plain)
    guest_of(smaller)[key] = value
    return smaller
