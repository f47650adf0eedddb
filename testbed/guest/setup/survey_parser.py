"""Parses the output of the survey script of a guest. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from testbed.errors import ReadingError
from testbed.guest.channels.kernel_log import clean
from testbed.guest.setup.survey import BLOCK_FILES, Block, Group, Hardware, Mount, Survey, SurveyError, Swap
from testbed.regex import compile_linear
from testbed.units import KIB, parse_whole

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
            case _ if word in BLOCK_FILES:
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
