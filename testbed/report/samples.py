"""Reads what was sampled and done while a scenario ran, from a guest's folder of evidence: a guest or a stranger may have written it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from testbed.host import untrusted_files
from testbed.report.fields import Count, Every, Named, Seconds
from testbed.text import parse_printable_json

Point = dict[str, Any]
_LARGEST_FILE, _MOST_LINES = 64 << 20, 200_000
_STRICT = with_config({"strict": True})


@_STRICT
class _Way(TypedDict, total=False):
    requests: Count
    bytes: Count
    latency: Every[Count]


@_STRICT
class _Disk(TypedDict, total=False):
    rd: _Way
    wr: _Way


@_STRICT
class _Group(TypedDict, total=False):
    file: Count
    shmem: Count
    anon: Count
    oom_kill: Count
    memory_stall_us: Count
    io_stall_us: Count
    io: Named[Named[Count]]


@_STRICT
class _OfDisks(TypedDict):
    guest_s: Seconds
    disks: Named[_Disk]


@_STRICT
class _OfGroups(TypedDict):
    guest_s: Seconds
    groups: Named[_Group | None]


@_STRICT
class _Act(TypedDict, total=False):
    guest_s: Seconds
    reached: str
    do: str
    error: str


_DISKS, _GROUPS, _ACT = TypeAdapter(_OfDisks), TypeAdapter(_OfGroups), TypeAdapter(_Act)


def disks(folder: Path, name: str) -> Iterator[Point]:
    """Samples of emulated disks; see `sampler`."""
    return _lines(folder, name, _DISKS)


def groups(folder: Path, name: str) -> Iterator[Point]:
    """Samples of control groups; see `group_sampler`."""
    return _lines(folder, name, _GROUPS)


def acts(folder: Path, name: str) -> Iterator[Point]:
    """What a timeline has done; see `player`."""
    return (act for act in _lines(folder, name, _ACT) if "guest_s" in act)


def _lines(folder: Path, name: str, model: TypeAdapter[Any]) -> Iterator[Point]:
    """The lines that are of the model's form: a guest that was lost may have left half of one."""
    try:
        data = untrusted_files.read_below(folder, name, _LARGEST_FILE)
    except OSError:
        return
    for line in islice(data.splitlines(), _MOST_LINES):
        try:
            yield model.validate_python(parse_printable_json(line))
        except (ValidationError, ValueError):
            continue
