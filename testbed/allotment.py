"""What of this machine's memory and cores this process may have: all of it, or what its control groups leave, as in a container."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
# Pages of files, which a group gives up before anything in it is killed; shared memory is not among them (cgroup-v2.rst, memory.stat).
_FILES = re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What control groups leave; None where they leave all. `free_bytes`: what could be had of the memory now."""

    memory_bytes: int | None = None
    free_bytes: int | None = None
    cores: int | None = None


def path_of(groups: str) -> str | None:
    """The path of a process's group in the v2 hierarchy, from /proc/PID/cgroup; None where there is none (cgroups(7)). Pure."""
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        if number == "0" and rest.startswith(":/"):
            # Outside of our namespace's root, as for a process that was moved: of what is above it we see nothing.
            return "/" if "/.." in rest else rest[1:]
    return None


def memory_limit(text: str) -> int | None:
    """Bytes, from memory.max. Pure."""
    return int(text) if text.strip().isdecimal() else None


def core_limit(text: str) -> int | None:
    """Whole cores, at least one, from cpu.max: microseconds of time, or `max`, in a period. Pure."""
    quota, _, period = text.strip().partition(" ")
    return max(1, int(quota) // int(period)) if quota.isdecimal() and period.isdecimal() and int(period) else None


def free_of(limit_bytes: int, current: str, stat: str) -> int:
    """Bytes that a group could still take, from its limit, memory.current and memory.stat. Pure."""
    return max(0, limit_bytes - int(current) + sum(map(int, _FILES.findall(stat))))


def share(root: Path, groups: str) -> Share:
    """The least that the group of a process and those above it leave.

    `root`: where the v2 hierarchy is mounted; `groups`: what /proc/PID/cgroup holds.
    """
    memory, free, cores = list[int](), list[int](), list[int]()
    for folder in _upwards(root, path_of(groups)):
        # A controller that is not on in a group has no files there.
        with contextlib.suppress(OSError, ValueError):
            if (found := core_limit((folder / "cpu.max").read_text(encoding="utf-8"))) is not None:
                cores.append(found)
        with contextlib.suppress(OSError, ValueError):
            if (limit_bytes := memory_limit((folder / "memory.max").read_text(encoding="utf-8"))) is not None:
                memory.append(limit_bytes)
                free.append(
                    free_of(
                        limit_bytes,
                        (folder / "memory.current").read_text(encoding="utf-8"),
                        (folder / "memory.stat").read_text(encoding="utf-8"),
                    )
                )
    return Share(memory_bytes=min(memory, default=None), free_bytes=min(free, default=None), cores=min(cores, default=None))


def _upwards(root: Path, path: str | None) -> Iterator[Path]:
    if path is not None:
        own = Path(path.lstrip("/"))
        yield from (root / part for part in (own, *own.parents))


def _own() -> Share:
    try:
        return share(_GROUPS, Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    except OSError:
        return Share()


def memory_bytes() -> int:
    """Bytes of memory that we may have, if nobody else had any."""
    there, own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _own().memory_bytes
    return there if own is None else min(there, own)


def free_bytes() -> int:
    """Bytes of memory that we could have now."""
    found, own = _AVAILABLE.search(Path("/proc/meminfo").read_text(encoding="utf-8")), _own().free_bytes
    there = int(found[1]) * 1024 if found else 0
    return there if own is None else min(there, own)


def cores() -> int:
    """How many cores we may keep busy."""
    there, own = len(os.sched_getaffinity(0)), _own().cores
    return there if own is None else min(there, own)
