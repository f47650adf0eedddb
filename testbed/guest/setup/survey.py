"""Records what stands on a guest's disks while a scenario measures its claim: block devices, filesystems, swap and
cgroups, as its kernel lists them. Pure: the shell script, and the values that `survey_parser` makes of its output.

The script is a file in the guest. The steps of a scenario source it where the claim is measured; only the first time
counts. It uses shell builtins alone, since one program would take longer than all of its reading.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_SCRIPT, _LOG = "/run/testbed-survey", "/run/testbed-survey.log"
# The command that steps run where the claim is measured. It does nothing if the script was not put into the guest.
TAKE = f"[ ! -e {_SCRIPT} ] || . {_SCRIPT}"
# Prints the survey; nothing if no step has taken one.
SHOW = f'[ ! -e {_LOG} ] || while read -r line; do echo "$line"; done <{_LOG}\n'

BLOCK_FILES = (
    *("dev", "size", "ro", "queue/logical_block_size", "queue/read_ahead_kb", "queue/scheduler"),
    *("loop/backing_file", "loop/dio", "loop/offset", "loop/sizelimit", "dm/name", "md/level"),
)
# Files of a cgroup, with the value that limits nothing.
_LIMITS = {
    "memory.min": "0",
    "memory.low": "0",
    "memory.high": "max",
    "memory.max": "max",
    "memory.swap.max": "max",
    "cpu.max": "max 100000",
    "cpu.weight": "100",
    "pids.max": "max",
    "io.max": "",
    "io.weight": "default 100",
    "io.bfq.weight": "default 100",
    "io.latency": "",
    "io.cost.model": "",
    "io.cost.qos": "",
}
# Further cgroups are counted but not read.
_MOST_GROUPS = 64
_TEXT = """\
[ -e LOG ] || (
    first() { [ ! -r "$1" ] || { read -r value <"$1" && echo "$2 $value"; }; }
    each() { [ ! -r "$1" ] || while read -r value; do [ "$value" = "$3" ] || echo "$2 $value"; done <"$1"; }
    first /sys/devices/system/cpu/online cpus
    for block in DISKS /sys/block/loop* /sys/block/dm-* /sys/block/md*; do
        name=${block##*/}
        [ -e "$block" ] || continue
        case $name in loop*) [ -e "$block/loop/backing_file" ] || continue ;; esac
        echo "block $name"
        for file in FILES; do first "$block/$file" "$file"; done
        for part in "$block/$name"*; do [ ! -e "$part/partition" ] || first "$part/size" "part ${part##*/}"; done
        for below in "$block"/slaves/*; do [ ! -e "$below" ] || echo "below ${below##*/}"; done
    done
    each /proc/mounts mount
    each /proc/swaps swap
    first /sys/fs/cgroup/cgroup.subtree_control controllers
    count=0
    for group in /sys/fs/cgroup /sys/fs/cgroup/*/ /sys/fs/cgroup/*/*/; do
        [ -d "$group" ] || continue
        count=$((count + 1))
        [ $count -le MOST ] || continue
        group=${group%/}
        echo "group ${group#/sys/fs/cgroup}"
        LIMITS
    done
    [ $count -le MOST ] || echo "more $((count - MOST))"
    echo end
) >LOG 2>/dev/null || :
"""
_GIVEN = {
    "LOG": _LOG,
    "FILES": " ".join(BLOCK_FILES),
    "MOST": str(_MOST_GROUPS),
    "LIMITS": "; ".join(f"each \"$group/{file}\" 'limit {file}' '{default}'" for file, default in _LIMITS.items()),
}


def survey_commands(disks: Iterable[str]) -> str:
    """Return shell commands that put the script into a guest. `disks`: the /dev paths of the topology's disks."""
    text = _TEXT
    for word, value in {
        **_GIVEN,
        "DISKS": " ".join(f"/sys/block/{path.removeprefix('/dev/')}" for path in disks),
    }.items():
        text = text.replace(word, value)
    return f"printf %s {shlex.quote(text)} >{_SCRIPT}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """An emulated disk, as the topology describes it."""

    name: str
    type: str
    profile: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block device. `kind`: loop, dm, md, or a disk's type.

    `profile`: the profile of a disk, if it has one. `name`: of a disk in the topology, of a dm device, else of the
    device node. `device`: its /dev path. `number`: its MAJ:MIN.

    Loops have `backing_file`, `direct_io`, `offset_bytes` and `size_limit_bytes` (0: none). `partitions`: sizes in
    bytes by /dev path. `on`: the /dev paths below a dm or md device.
    """

    kind: str
    name: str
    device: str
    number: str
    size_bytes: int
    read_only: bool
    logical_block_size: int
    read_ahead_bytes: int
    scheduler: str
    profile: str = ""
    backing_file: str = ""
    direct_io: bool = False
    offset_bytes: int = 0
    size_limit_bytes: int = 0
    partitions: Mapping[str, int] = field(default_factory=dict)
    on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mounted filesystem; `source` and `options` as in /proc/mounts."""

    mount_point: str
    type: str
    source: str
    options: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """A swap area on a file or a device."""

    on: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A cgroup, by its path below the root (`/`). `limits`: the lines of its files that limit something, by file."""

    path: str
    limits: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was set up in a guest.

    `cpus`: the online CPUs, such as 0-1. `controllers`: the controllers that are enabled below the root. `more_groups`:
    how many cgroups there are beyond `groups`.
    """

    cpus: str
    controllers: str
    blocks: tuple[Block, ...]
    mounts: tuple[Mount, ...]
    swaps: tuple[Swap, ...]
    groups: tuple[Group, ...]
    more_groups: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyError:
    """Why there is no survey."""

    why: str
