"""What stands on a guest's disks while a scenario measures its claim: devices, filesystems, swap and control groups, as the guest's kernel
lists them. Pure: a script of shell builtins, and its output to values.

The script is a file in the guest, which the steps of a scenario source where the claim is measured; the first time counts. It starts no
program: each would take longer than all of its reading.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from testbed.errors import ReadingError
from testbed.guest.channels.kernel_log import clean
from testbed.regex import compile_linear
from testbed.units import KIB, parse_whole

_SCRIPT, _LOG = "/run/testbed-survey", "/run/testbed-survey.log"
# What steps have where the claim is measured. Where nobody has put the script there, it does nothing.
TAKE = f"[ ! -e {_SCRIPT} ] || . {_SCRIPT}"
# Prints what it was; nothing where no step has taken one.
SHOW = f'[ ! -e {_LOG} ] || while read -r line; do echo "$line"; done <{_LOG}\n'

_BLOCK = (
    *("dev", "size", "ro", "queue/logical_block_size", "queue/read_ahead_kb", "queue/scheduler"),
    *("loop/backing_file", "loop/dio", "loop/offset", "loop/sizelimit", "dm/name", "md/level"),
)
# Files of a control group, with the value that limits nothing.
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
# Of more control groups the rest is counted, and not looked at.
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
    "FILES": " ".join(_BLOCK),
    "MOST": str(_MOST_GROUPS),
    "LIMITS": "; ".join(f"each \"$group/{file}\" 'limit {file}' '{default}'" for file, default in _LIMITS.items()),
}


def survey_commands(disks: Iterable[str]) -> str:
    """Shell commands that put the script into a guest. `disks`: the /dev paths of the topology's disks."""
    text = _TEXT
    for word, value in {
        **_GIVEN,
        "DISKS": " ".join(f"/sys/block/{path.removeprefix('/dev/')}" for path in disks),
    }.items():
        text = text.replace(word, value)
    return f"printf %s {shlex.quote(text)} >{_SCRIPT}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """An emulated disk, as the host knows it: its name in the topology, type and profile."""

    name: str
    type: str
    profile: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block device. `kind`: loop, dm, md, or a disk's type; `profile`: of a disk that behaves like a real one. `name`: a disk's in the
    topology, a dm device's own, else that of `device`, its /dev path; `number`: its MAJ:MIN.

    `backing_file`, `direct_io`, `offset_bytes` and `size_limit_bytes` (0: none) of a loop; `partitions`: bytes by /dev path; `on`: the /dev
    paths of what a dm or md device stands on.
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
    """A filesystem. `source`: what /proc/mounts calls its device; `options` as it lists them."""

    mount_point: str
    type: str
    source: str
    options: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """A swap area: `on` a file or a device."""

    on: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A control group, by its path below the root (`/`). `limits`: lines of its files that limit something, by file."""

    path: str
    limits: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What stood there. `cpus`: those online, such as 0-1; `controllers`: those enabled for the groups below the root; `more_groups`: how
    many there are beyond `groups`.
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
    """No survey, and why."""

    why: str


# What every guest has mounted before anything stands on its disks (images/guest/testbed-init), as SOURCE PLACE.
_OWN_MOUNTS = frozenset({("tmp", "/tmp"), ("mnt", "/mnt"), ("run", "/run"), ("shm", "/dev/shm")})  # noqa: S108 - in the guest
_OWN_PLACES = frozenset({"/", "/proc", "/sys", "/dev", "/dev/pts", "/lib/modules", "/usr/lib/modules"})
# Where scenarios ask whether a controller has a file (scenarios/base.py).
_PROBE = "/probe"
# A guest chooses what it answers; that of 32 control groups has 200 lines.
_LONGEST, _MOST_LINES = 300, 3000
_CHOSEN = compile_linear(r"\[([^\[\]\s]+)\]")
_ESCAPED = compile_linear(r"\\([0-7]{3})")


def parse(output: str, disks: Mapping[str, Hardware]) -> Survey | SurveyError:
    """What `SHOW` printed. `disks`: by /dev path. Half of a survey, or one with something else in it, is none."""
    lines = [line.partition(" ")[::2] for line in output.splitlines()]
    if not lines:
        return SurveyError(why="its steps were not at the claim, or take no survey there")
    if lines[-1] != ("end", "") or len(lines) > _MOST_LINES:
        return SurveyError(why=f"the survey of the guest has no end within {_MOST_LINES} lines")
    blocks: dict[str, dict[str, str]] = {}
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    mounts: list[Mount] = []
    swaps: list[Swap] = []
    about = {"cpus": "", "controllers": ""}
    more = 0
    block: dict[str, str] = {}
    group: dict[str, tuple[str, ...]] = {}
    try:
        for word, rest in lines[:-1]:
            match word:
                case "cpus" | "controllers":
                    about[word] = _text(rest)
                case "more":
                    more = _number(rest)
                case "block":
                    block = blocks[rest] = {}
                case "part" | "below":
                    name, _, value = rest.partition(" ")
                    block[f"{word} {name}"] = value
                case "group":
                    group = groups[rest or "/"] = {}
                case "limit":
                    file, _, value = rest.partition(" ")
                    group[file] = (*group.get(file, ()), _text(value))
                case "mount":
                    mounts += _mount(rest)
                case "swap":
                    swaps += _swap(rest)
                case _ if word in _BLOCK:
                    block[word] = rest
                case _:
                    raise ValueError(f"{word!r} is no word of a survey")
        return Survey(
            **about,
            blocks=tuple(_block(name, said, disks) for name, said in blocks.items()),
            mounts=tuple(mounts),
            swaps=tuple(swaps),
            more_groups=more,
            groups=tuple(
                Group(path=_text(path), limits=limits)
                for path, limits in groups.items()
                if path != _PROBE and (limits or path != "/")
            ),
        )
    except (KeyError, ValueError, ReadingError) as error:
        return SurveyError(
            why=f"the survey of the guest is not understood: {type(error).__name__}: {_text(str(error))}"
        )


def _block(name: str, said: Mapping[str, str], disks: Mapping[str, Hardware]) -> Block:
    """:raise KeyError, ValueError: it is none that was asked for."""
    device = f"/dev/{name}"
    kind = (
        "loop" if "loop/backing_file" in said else "dm" if "dm/name" in said else "md" if name.startswith("md") else ""
    )
    known = Hardware(name=said.get("dm/name", name), type=kind) if kind else disks[device]
    parts = {word.partition(" ")[2]: value for word, value in said.items() if word.startswith("part ")}
    return Block(
        kind=known.type,
        name=_text(known.name),
        profile=known.profile,
        device=_text(device),
        number=_text(said["dev"]),
        size_bytes=_number(said["size"]) * 512,
        read_only=said["ro"] == "1",
        logical_block_size=_number(said["queue/logical_block_size"]),
        read_ahead_bytes=_number(said["queue/read_ahead_kb"]) * KIB,
        scheduler=_chosen(said.get("queue/scheduler", "")),
        backing_file=_text(said.get("loop/backing_file", "")),
        direct_io=said.get("loop/dio") == "1",
        offset_bytes=_number(said.get("loop/offset", "0")),
        size_limit_bytes=_number(said.get("loop/sizelimit", "0")),
        partitions={_text(f"/dev/{part}"): _number(sectors) * 512 for part, sectors in parts.items()},
        on=tuple(_text(f"/dev/{word.partition(' ')[2]}") for word in said if word.startswith("below ")),
    )


def _chosen(schedulers: str) -> str:
    """The scheduler in brackets."""
    found = _CHOSEN.search(schedulers)
    return _text(found[1] if found else schedulers)


def _mount(line: str) -> Iterator[Mount]:
    """The mount of a line of /proc/mounts, unless every guest has it.

    :raise ValueError: it is no such line.
    """
    source, point, kind, options, *_ = (_unescaped(word) for word in line.split(" "))
    if (source, point) not in _OWN_MOUNTS and point not in _OWN_PLACES and not point.startswith(("/proc/", "/sys/")):
        yield Mount(mount_point=point, type=kind, source=source, options=options)


def _swap(line: str) -> Iterator[Swap]:
    """The area of a line of /proc/swaps: path, type, size in KiB, ...; none of its head.

    :raise ValueError: it is no such line.
    """
    path, _, size_kib, *_ = line.split()
    if path != "Filename":
        yield Swap(on=_unescaped(path), size_bytes=_number(size_kib) * KIB)


def _unescaped(word: str) -> str:
    """A word of /proc/mounts or /proc/swaps, in which blanks are octal."""
    return _text(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), word))


def _text(said: str) -> str:
    """What a guest says, bounded and printable."""
    return clean(said, _LONGEST)


def _number(said: str) -> int:
    """:raise ReadingError: it is no number, or one that no guest has."""
    return parse_whole(said, "the survey of the guest")
