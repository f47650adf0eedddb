"""Reads samples and timelines from a guest's log folder. A guest or a stranger may have written them."""

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
class _Direction(TypedDict, total=False):
    requests: Count
    bytes: Count
    latency: Every[Count]


@_STRICT
class _Disk(TypedDict, total=False):
    rd: _Direction
    wr: _Direction


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
class _DiskSample(TypedDict):
    guest_s: Seconds
    disks: Named[_Disk]


@_STRICT
class _CgroupSample(TypedDict):
    guest_s: Seconds
    groups: Named[_Group | None]


@_STRICT
class _Action(TypedDict, total=False):
    guest_s: Seconds
    reached: str
    do: str
    error: str


_DISKS, _GROUPS, _ACTION = TypeAdapter(_DiskSample), TypeAdapter(_CgroupSample), TypeAdapter(_Action)


def disk_samples(folder: Path, name: str) -> Iterator[Point]:
    """Read samples of emulated disks, as `disk_sampler` writes them."""
    return _lines(folder, name, _DISKS)


def cgroup_samples(folder: Path, name: str) -> Iterator[Point]:
    """Read samples of control groups, as `cgroup_sampler` writes them."""
    return _lines(folder, name, _GROUPS)


def timed_actions(folder: Path, name: str) -> Iterator[Point]:
    """Read the actions of a timeline, as `guest.timeline` writes them."""
    return (action for action in _lines(folder, name, _ACTION) if "guest_s" in action)


def _lines(folder: Path, name: str, model: TypeAdapter[Any]) -> Iterator[Point]:
    """Read the lines that the model accepts: a lost guest may have left an incomplete line."""
    try:
        data = untrusted_files.read_below(folder, name, _LARGEST_FILE)
    except OSError:
        return
    for line in islice(data.splitlines(), _MOST_LINES):
        try:
            yield model.validate_python(parse_printable_json(line))
        except (ValidationError, ValueError):
            continue
