"""Delta debugging of a bug's guest (A. Zeller, R. Hildebrandt, "Simplifying and isolating failure-inducing input",
2002): which parts can be dropped, and in which order that is tried. Pure: generators that yield candidates and are sent
answers.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.units import MIB, format_size, parse_size

_LEAST_MEMORY = 256 * MIB
_DEFAULT_CPUS, _DEFAULT_MEMORY = 2, 1024 * MIB
# Sections that use others come before them: their parts can be dropped while the others stay.
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
# Keys that a disk does not need.
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
PartPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a guest that may be dropped: its path below the guest."""

    path: PartPath

    def __str__(self) -> str:
        return ".".join(str(word) for word in self.path)


def guest_of(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the mapping of the only guest in a self-contained bug; inserts an empty one where there is none."""
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
    """List all parts that may be dropped; parts that use others come first."""
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
    """Return the bug without some parts and without sections that are empty then."""
    smaller = copy.deepcopy(plain)
    guest = guest_of(smaller)
    # From the end, so that indexes of lists stay valid.
    for part in sorted(
        dropped,
        key=lambda part: [("", word) if isinstance(word, int) else (word, 0) for word in part.path],
        reverse=True,
    ):
        _drop(guest, part.path)
    for section in [key for key, value in guest.items() if value in ({}, [])]:
        del guest[section]
    return smaller


def _drop(guest: dict[str, Any], path: PartPath) -> None:
    at: Any = guest
    for word in path[:-1]:
        try:
            at = at[word]
        except (KeyError, IndexError):
            return  # the part that contained it is dropped already
    if isinstance(at, list):
        number = path[-1]
        assert isinstance(number, int)
        at[number : number + 1] = []
    else:
        at.pop(path[-1], None)


Search = Generator[tuple[Part, ...], bool, tuple[Part, ...]]


def minimize(all_parts: Sequence[Part]) -> Search:
    """Yield the parts to drop, and be sent whether the bug still shows without them. Returns the parts that can be
    dropped: with any single further part dropped, the bug does not show any more."""
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
    """Yield the bug on a smaller machine, in words and as a mapping: with one CPU, and with half of the memory."""
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
