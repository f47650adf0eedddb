"""What of this machine's memory and cores this process may have: all of it, or what its control groups leave, as in a container.

Machines have groups of version 2, of version 1, or both (hybrid), each hierarchy mounted where its administrator likes (cgroups(7)).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
# Pages of files, which a group gives up before anything in it is killed; shared memory is not among them (cgroup-v2.rst, memory.stat). In
# version 1, those whose names begin with total_ are of the groups below as well, as the usage is.
_FILES = re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)
_FILES_BELOW = re.compile(r"^total_(?:in)?active_file (\d+)$", re.MULTILINE)
# Version 1 writes the largest number of pages, in bytes, where there is no limit.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimits:
    """What control groups leave; None where they leave all. `free_bytes`: what could be had of the memory now."""

    memory_bytes: int | None = None
    free_bytes: int | None = None
    cores: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """A mounted hierarchy of groups. `controllers`: of version 1; empty for version 2. `root`: the group that is mounted at `folder`."""

    folder: Path
    root: PurePosixPath
    controllers: frozenset[str] = frozenset()


def hierarchies(mounts: str) -> Iterator[Hierarchy]:
    """Those of /proc/PID/mountinfo (proc_pid_mountinfo(5)). Pure."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, folder = (re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), field) for field in fields[3:5])
        controllers = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset()
        yield Hierarchy(folder=Path(folder), root=PurePosixPath(root), controllers=controllers)


def cgroup_path(groups: str, hierarchy: Hierarchy) -> PurePosixPath | None:
    """The path below its folder of a process's group in a hierarchy, from /proc/PID/cgroup; None where it has none there. Pure."""
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
                # Outside of our namespace's root, as for a process that was moved: of what is above it we see nothing.
                return PurePosixPath("/")
            # In a container without a namespace of its own, the path is the machine's, and what is mounted is a part of it.
            return PurePosixPath("/") / own.relative_to(hierarchy.root) if own.is_relative_to(hierarchy.root) else own
    return None


def memory_limit(text: str) -> int | None:
    """Bytes, from memory.max or memory.limit_in_bytes. Pure."""
    return int(text) if text.strip().isdecimal() and int(text) < _NO_LIMIT_BYTES else None


def core_limit(text: str) -> int | None:
    """Whole cores, at least one, from cpu.max: microseconds of time, or `max`, in a period. Pure."""
    quota, _, period = text.strip().partition(" ")
    return max(1, int(quota) // int(period)) if quota.isdecimal() and period.isdecimal() and int(period) else None


def free_in_group(limit_bytes: int, current: str, stat: str) -> int:
    """Bytes that a group could still take, from its limit, usage and memory.stat. Pure."""
    return max(0, limit_bytes - int(current) + sum(map(int, _FILES_BELOW.findall(stat) or _FILES.findall(stat))))


def cgroup_limits(mounts: str, groups: str, top: Path = Path("/")) -> CgroupLimits:
    """The least that the groups of a process and those above them leave.

    `mounts`, `groups`: what /proc/PID/mountinfo and /proc/PID/cgroup hold; `top`: where the folders are.
    """
    memory, free, cores = list[int](), list[int](), list[int]()
    for hierarchy in hierarchies(mounts):
        for number, folder in enumerate(
            _upwards(top / hierarchy.folder.relative_to("/"), cgroup_path(groups, hierarchy))
        ):
            # A controller that is not on in a group has no files there.
            with contextlib.suppress(OSError, ValueError):
                if (found := _cores(folder, hierarchy)) is not None:
                    cores.append(found)
            with contextlib.suppress(OSError, ValueError):
                limit_bytes, free_bytes = _memory(folder, hierarchy)
                if limit_bytes is not None and (number == 0 or _holds_below(folder)):
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
    """The limit of a group, and what of it is free."""
    limit, usage = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if hierarchy.controllers
        else ("memory.max", "memory.current")
    )
    limit_bytes = memory_limit(_text(folder / limit))
    return limit_bytes, 0 if limit_bytes is None else free_in_group(
        limit_bytes, _text(folder / usage), _text(folder / "memory.stat")
    )


def _holds_below(folder: Path) -> bool:
    """Whether a group's limit of memory is one of the groups below it: in version 1 that was a choice until Linux 5.11."""
    return not (folder / "memory.use_hierarchy").exists() or _text(folder / "memory.use_hierarchy").strip() != "0"


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _upwards(root: Path, path: PurePosixPath | None) -> Iterator[Path]:
    if path is not None:
        own = path.relative_to("/")
        yield from (root / part for part in (own, *own.parents))


def _own() -> CgroupLimits:
    try:
        return cgroup_limits(_text(Path("/proc/self/mountinfo")), _text(Path("/proc/self/cgroup")))
    except OSError:
        return CgroupLimits()


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
