"""Records what stands on a guest's disks while a scenario measures its claim: block devices, filesystems, swap and
cgroups, as the guest's kernel lists them. Pure: makes a shell script, and parses its output.

The script is a file in the guest. The steps of a scenario source it where the claim is measured; only the first time
counts. It uses shell builtins alone, since one program would take longer than all of its reading.
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
# The command that steps run where the claim is measured. It does nothing if the script was not put into the guest.
TAKE = f"[ ! -e {_SCRIPT} ] || . {_SCRIPT}"
# Prints the survey; nothing if no step has taken one.
SHOW = f'[ ! -e {_LOG} ] || while read -r line; do echo "$line"; done <{_LOG}\n'

_BLOCK = (
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
    "FILES": " ".join(_BLOCK),
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


# Mounts that every guest has from its start (images/guest/testbed-init): source and mount point.
_OWN_MOUNTS = frozenset(
    {("tmp", "/tmp"), ("mnt", "/mnt"), ("run", "/run"), ("shm", "/dev/shm")}  # noqa: S108 - in the guest
)
_OWN_PLACES = frozenset({"/", "/proc", "/sys", "/dev", "/dev/pts", "/lib/modules", "/usr/lib/modules"})
# The cgroup in which scenarios check whether a controller has a file (scenarios/scenario.py).
_PROBE = "/probe"
# The guest chooses its output; that for 32 cgroups has 200 lines.
_LONGEST, _MOST_LINES = 300, 3000
_CHOSEN = compile_linear(r"\[([^\[\]\s]+)\]")
_ESCAPED = compile_linear(r"\\([0-7]{3})")


def parse(output: str, disks: Mapping[str, Hardware]) -> Survey | SurveyError:
    """Parse the output of `SHOW`.

    `disks`: by /dev path. An incomplete survey, or one with unknown lines, is an error.
    """
    lines = [line.partition(" ")[::2] for line in output.splitlines()]
    if not lines:
        return SurveyError(why="its steps were not at the claim, or take no survey there")
    if lines[-1] != ("end", "") or len(lines) > _MOST_LINES:
        return SurveyError(why=f"the survey of the guest has no end within {_MOST_LINES} lines")
    try:
        records = _Records()
        for word, rest in lines[:-1]:
            records.add(word, rest)
        return records.survey(disks)
    except (KeyError, ValueError, ReadingError) as error:
        return SurveyError(
            why=f"the survey of the guest is not understood: {type(error).__name__}: {_text(str(error))}"
        )


class _Records:
    """The lines of a survey, grouped by what they describe."""

    def __init__(self) -> None:
        self._general = {"cpus": "", "controllers": ""}
        self._more_groups = 0
        self._blocks: dict[str, dict[str, str]] = {}
        self._groups: dict[str, dict[str, tuple[str, ...]]] = {}
        self._mounts: list[Mount] = []
        self._swaps: list[Swap] = []
        # The block device and the cgroup that further lines describe.
        self._block: dict[str, str] = {}
        self._group: dict[str, tuple[str, ...]] = {}

    def add(self, word: str, rest: str) -> None:
        """Add one line, of its first word and the rest.

        :raise ValueError: it is no line of a survey. :raise ReadingError: a number of it is none.
        """
        match word:
            case "cpus" | "controllers":
                self._general[word] = _text(rest)
            case "more":
                self._more_groups = _number(rest)
            case "block":
                self._block = self._blocks[rest] = {}
            case "part" | "below":
                name, _, value = rest.partition(" ")
                self._block[f"{word} {name}"] = value
            case "group":
                self._group = self._groups[rest or "/"] = {}
            case "limit":
                file, _, value = rest.partition(" ")
                self._group[file] = (*self._group.get(file, ()), _text(value))
            case "mount":
                self._mounts += _mount(rest)
            case "swap":
                self._swaps += _swap(rest)
            case _ if word in _BLOCK:
                self._block[word] = rest
            case _:
                raise ValueError(f"{word!r} is no word of a survey")

    def survey(self, disks: Mapping[str, Hardware]) -> Survey:
        """Build the survey from the lines.

        :raise KeyError, ValueError: the lines of a block device are incomplete. :raise ReadingError: a number is none.
        """
        return Survey(
            **self._general,
            blocks=tuple(_block(name, values, disks) for name, values in self._blocks.items()),
            mounts=tuple(self._mounts),
            swaps=tuple(self._swaps),
            more_groups=self._more_groups,
            groups=tuple(
                Group(path=_text(path), limits=limits)
                for path, limits in self._groups.items()
                if path != _PROBE and (limits or path != "/")
            ),
        )


def _block(name: str, values: Mapping[str, str], disks: Mapping[str, Hardware]) -> Block:
    """Build a block device from its lines.

    :raise KeyError, ValueError: a line is missing, or it is no device of the script's.
    """
    device = f"/dev/{name}"
    kind = (
        "loop"
        if "loop/backing_file" in values
        else "dm"
        if "dm/name" in values
        else "md"
        if name.startswith("md")
        else ""
    )
    known = Hardware(name=values.get("dm/name", name), type=kind) if kind else disks[device]
    parts = {word.partition(" ")[2]: value for word, value in values.items() if word.startswith("part ")}
    return Block(
        kind=known.type,
        name=_text(known.name),
        profile=known.profile,
        device=_text(device),
        number=_text(values["dev"]),
        size_bytes=_number(values["size"]) * 512,
        read_only=values["ro"] == "1",
        logical_block_size=_number(values["queue/logical_block_size"]),
        read_ahead_bytes=_number(values["queue/read_ahead_kb"]) * KIB,
        scheduler=_chosen(values.get("queue/scheduler", "")),
        backing_file=_text(values.get("loop/backing_file", "")),
        direct_io=values.get("loop/dio") == "1",
        offset_bytes=_number(values.get("loop/offset", "0")),
        size_limit_bytes=_number(values.get("loop/sizelimit", "0")),
        partitions={_text(f"/dev/{part}"): _number(sectors) * 512 for part, sectors in parts.items()},
        on=tuple(_text(f"/dev/{word.partition(' ')[2]}") for word in values if word.startswith("below ")),
    )


def _chosen(schedulers: str) -> str:
    """Return the active scheduler, which is in brackets."""
    found = _CHOSEN.search(schedulers)
    return _text(found[1] if found else schedulers)


def _mount(line: str) -> Iterator[Mount]:
    """Yield the mount of a line of /proc/mounts, unless every guest has it.

    :raise ValueError: it is no such line.
    """
    source, point, kind, options, *_ = (_unescaped(word) for word in line.split(" "))
    if (source, point) not in _OWN_MOUNTS and point not in _OWN_PLACES and not point.startswith(("/proc/", "/sys/")):
        yield Mount(mount_point=point, type=kind, source=source, options=options)


def _swap(line: str) -> Iterator[Swap]:
    """Yield the area of a line of /proc/swaps (path, type, size in KiB, ...), nothing for its header.

    :raise ValueError: it is no such line.
    """
    path, _, size_kib, *_ = line.split()
    if path != "Filename":
        yield Swap(on=_unescaped(path), size_bytes=_number(size_kib) * KIB)


def _unescaped(word: str) -> str:
    """Decode a word of /proc/mounts or /proc/swaps, in which blanks are octal escapes."""
    return _text(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), word))


def _text(text: str) -> str:
    """Return a text of the guest, bounded and printable."""
    return clean(text, _LONGEST)


def _number(text: str) -> int:
    """Parse a number.

    :raise ReadingError: it is no whole number below 2**64.
    """
    return parse_whole(text, "the survey of the guest")
