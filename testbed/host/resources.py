"""Tells how much memory and how many cores of this machine this process may use: all, or what its control groups allow,
as in a container.

A machine may have cgroups of version 2, of version 1, or both (hybrid), and each hierarchy may be mounted anywhere
(cgroups(7)).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
# Page cache, which a cgroup gives up before anything in it is killed; shared memory is not part of it (cgroup-v2.rst,
# memory.stat). In version 1, values whose names begin with total_ include the cgroups below, as the usage does.
_PAGE_CACHE = re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)
_PAGE_CACHE_TOTAL = re.compile(r"^total_(?:in)?active_file (\d+)$", re.MULTILINE)
# Version 1 writes the largest number of pages, in bytes, if there is no limit.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimits:
    """What control groups allow; None where they set no limit. `free_bytes`: the memory that could be allocated now."""

    memory_bytes: int | None = None
    free_bytes: int | None = None
    cores: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """A mounted cgroup hierarchy.

    `controllers`: those of version 1; empty for version 2. `root`: the cgroup that is mounted at `folder`.
    """

    folder: Path
    root: PurePosixPath
    controllers: frozenset[str] = frozenset()


def hierarchies(mounts: str) -> Iterator[Hierarchy]:
    """Yield the hierarchies of /proc/PID/mountinfo (proc_pid_mountinfo(5)). Pure."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, folder = (re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), field) for field in fields[3:5])
        controllers = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset()
        yield Hierarchy(folder=Path(folder), root=PurePosixPath(root), controllers=controllers)


def cgroup_path(groups: str, hierarchy: Hierarchy) -> PurePosixPath | None:
    """Return the path of a process's cgroup below the folder of a hierarchy, from /proc/PID/cgroup; None if it has none
    there. Pure.
    """
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        same = (
            controllers.split(",")[0] in hierarchy.controllers
            if hierarchy.controllers
            else number == "0" and not controllers
        )
        if same and path.startswith("/"):
            own = PurePosixPath(path)
            if ".." in own.parts:
                # Outside the root of our cgroup namespace, as for a process that was moved: we cannot see what is above
                # it.
                return PurePosixPath("/")
            # In a container without a cgroup namespace the path is the machine's, and only a part of the tree is
            # mounted.
            return PurePosixPath("/") / own.relative_to(hierarchy.root) if own.is_relative_to(hierarchy.root) else own
    return None


def memory_limit(text: str) -> int | None:
    """Return the bytes of memory.max or memory.limit_in_bytes, None for no limit. Pure."""
    return int(text) if text.strip().isdecimal() and int(text) < _NO_LIMIT_BYTES else None


def core_limit(text: str) -> int | None:
    """Return whole cores, at least one, from cpu.max: microseconds of CPU time, or `max`, in a period. Pure."""
    quota, _, period = text.strip().partition(" ")
    return max(1, int(quota) // int(period)) if quota.isdecimal() and period.isdecimal() and int(period) else None


def free_in_group(limit_bytes: int, current: str, stat: str) -> int:
    """Return the bytes that a cgroup could still allocate, from its limit, usage and memory.stat. Pure."""
    return max(
        0, limit_bytes - int(current) + sum(map(int, _PAGE_CACHE_TOTAL.findall(stat) or _PAGE_CACHE.findall(stat)))
    )


def cgroup_limits(mounts: str, groups: str, top: Path = Path("/")) -> CgroupLimits:
    """Return the smallest limits of the cgroups of a process and of those above them.

    `mounts`, `groups`: the content of /proc/PID/mountinfo and /proc/PID/cgroup; `top`: the folder that the hierarchies
    are below.
    """
    memory, free, cores = list[int](), list[int](), list[int]()
    for hierarchy in hierarchies(mounts):
        for number, folder in enumerate(
            _with_ancestors(top / hierarchy.folder.relative_to("/"), cgroup_path(groups, hierarchy))
        ):
            # If a controller is not enabled in a cgroup, its files do not exist there.
            with contextlib.suppress(OSError, ValueError):
                if (limit := _cores(folder, hierarchy)) is not None:
                    cores.append(limit)
            with contextlib.suppress(OSError, ValueError):
                limit_bytes, free_bytes = _memory(folder, hierarchy)
                if limit_bytes is not None and (number == 0 or _covers_descendants(folder)):
                    memory.append(limit_bytes)
                    free.append(free_bytes)
    return CgroupLimits(
        memory_bytes=min(memory, default=None), free_bytes=min(free, default=None), cores=min(cores, default=None)
    )


def _cores(folder: Path, hierarchy: Hierarchy) -> int | None:
    if hierarchy.controllers:
        return core_limit(f"{_text(folder / 'cpu.cfs_quota_us').strip()} {_text(folder / 'cpu.cfs_period_us')}")
    return core_limit(_text(folder / "cpu.max"))


def _memory(folder: Path, hierarchy: Hierarchy) -> tuple[int | None, int]:
    """Return the memory limit of a cgroup, and how much of it is free."""
    limit, usage = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if hierarchy.controllers
        else ("memory.max", "memory.current")
    )
    limit_bytes = memory_limit(_text(folder / limit))
    return limit_bytes, 0 if limit_bytes is None else free_in_group(
        limit_bytes, _text(folder / usage), _text(folder / "memory.stat")
    )


def _covers_descendants(folder: Path) -> bool:
    """Tell whether a cgroup's memory limit covers the cgroups below it: in version 1 that was optional until Linux
    5.11.
    """
    return not (folder / "memory.use_hierarchy").exists() or _text(folder / "memory.use_hierarchy").strip() != "0"


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _with_ancestors(root: Path, path: PurePosixPath | None) -> Iterator[Path]:
    if path is not None:
        own = path.relative_to("/")
        yield from (root / part for part in (own, *own.parents))


def _own_limits() -> CgroupLimits:
    try:
        return cgroup_limits(_text(Path("/proc/self/mountinfo")), _text(Path("/proc/self/cgroup")))
    except OSError:
        return CgroupLimits()


def memory_bytes() -> int:
    """Return the bytes of memory that we may use at most."""
    machine, own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _own_limits().memory_bytes
    return machine if own is None else min(machine, own)


def free_bytes() -> int:
    """Return the bytes of memory that we could allocate now."""
    limit, own = _AVAILABLE.search(Path("/proc/meminfo").read_text(encoding="utf-8")), _own_limits().free_bytes
    machine = int(limit[1]) * 1024 if limit else 0
    return machine if own is None else min(machine, own)


def cores() -> int:
    """Return how many cores we may keep busy."""
    machine, own = len(os.sched_getaffinity(0)), _own_limits().cores
    return machine if own is None else min(machine, own)
