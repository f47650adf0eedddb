"""Turns the entries of a timeline into timed actions, and checks them. Pure.

do: throttle data iops-total=1000..100     with  ramp: 10s  is eleven actions, one each second.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from testbed.errors import UsageError
from testbed.hardware import commands
from testbed.hardware.commands import Action
from testbed.hardware.disk_kinds import DiskKind
from testbed.topology.timeline import TimelineEntry
from testbed.units import format_duration, format_size, parse_duration, parse_size

_RANGE = re.compile(r"(?<![\d.])(\d{1,30}(?:\.\d{1,30})?)([A-Za-z]{0,10})\.\.(\d{1,30}(?:\.\d{1,30})?)([A-Za-z]{0,10})")
_PER_S = 1_000_000
_PLUG, _UNPLUG = "plug", "unplug"
_MOST_PLUGS = 1000  # that are checked, of a disk that is plugged repeatedly without an end


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedAction:
    """An action and its time, in seconds after the start of the timeline, or after the event of its entry."""

    after_s: float
    text: str
    action: Action


def schedule(entry: TimelineEntry) -> Iterator[TimedAction]:
    """List the actions of an entry in order; the list is endless for `every` without `times`.

    :raise UsageError: `do` is no valid command.
    """
    begin = (entry.at or 0) / _PER_S
    if entry.ramp is not None:
        for step in range(entry.steps + 1):
            part = step / entry.steps
            yield _timed_action(begin + entry.ramp / _PER_S * part, _interpolate(entry.do, part))
    elif entry.every is not None:
        for number in itertools.count() if entry.times is None else range(entry.times):
            yield _timed_action(begin + entry.every / _PER_S * number, entry.do)
    else:
        yield _timed_action(begin, entry.do)


def format_entry(entry: TimelineEntry) -> str:
    """Describe an entry for people: its start, its repetition and its command."""
    when = entry.when
    begin = f"after {format_duration(entry.at)}" if entry.at else "at once" if when is None else ""
    if when is not None:
        bound = f"above {when.above}" if when.above is not None else f"below {when.below}"
        event = (
            f"mark {when.mark}"
            if when.mark
            else f"console {when.console!r}"
            if when.console
            else f"{when.cgroup}/{when.counter} {bound}"
        )
        begin = f"when {event}" + (f", {begin}" if begin else "")
    if entry.ramp is not None:
        begin += f", over {format_duration(entry.ramp)} in {entry.steps} steps"
    if entry.every is not None:
        begin += f", every {format_duration(entry.every)}" + (f", {entry.times} times" if entry.times else "")
    return f"{begin}: {entry.do}"


def timeline_mistakes(
    entry: TimelineEntry, disks: Mapping[str, DiskKind], *, memory_bytes: int, cpus: int
) -> Iterator[str]:
    """List what is wrong with an entry. `disks`: the disks and namespaces of its guest, and the kind of each."""
    if entry.when is not None:
        yield from entry.when.mistakes()
    if entry.at is None and entry.when is None and entry.every is None and entry.ramp is None:
        yield "expected at, when, every or ramp, got none: when shall it be?"
    if entry.every is not None and entry.ramp is not None:
        yield "expected every or ramp, got both"
    if entry.times is not None and entry.every is None:
        yield "expected every beside times, got none"
    if (entry.ramp is not None) != (_RANGE.search(entry.do) is not None):
        yield f"expected ramp, and FROM..TO in what it does, got one of them: {entry.do!r}"
    yield from _command_mistakes(entry, disks, {"memory": memory_bytes, "cpus": cpus})


def hotplug_mistakes(entries: Sequence[TimelineEntry], hot: Mapping[str, bool]) -> Iterator[tuple[int, str]]:
    """List entries that unplug an unplugged disk, or plug a plugged one: the first of each disk, by its index.

    Entries that start with an event are not checked, because their time is not known. `hot`: whether each disk or
    namespace can be plugged while its guest runs.
    """
    by_disk: dict[str, list[tuple[int, TimelineEntry]]] = {}
    for number, entry in enumerate(entries):
        if entry.verb in (_PLUG, _UNPLUG):
            by_disk.setdefault(next(iter(entry.do.split()[1:]), ""), []).append((number, entry))
    for disk, own in by_disk.items():
        if not hot.get(disk, True):
            can = ", ".join(name for name, is_hot in hot.items() if is_hot) or "it has none"
            yield (
                own[0][0],
                f"{own[0][1].do!r}: expected a disk that can be plugged while its guest runs ({can}), got {disk!r}",
            )
            continue
        if disk not in hot or any(entry.when is not None for _, entry in own):
            continue  # `timeline_mistakes` reports an unknown disk
        plugged = True
        for after_s, number, verb in itertools.islice(
            heapq.merge(*(_times(number, entry) for number, entry in own)), _MOST_PLUGS
        ):
            if (verb == _PLUG) == plugged:
                is_so = "is plugged" if plugged else "is unplugged already"
                yield (
                    number,
                    f"{entries[number].do!r}: expected a disk to {verb}, {disk!r} {is_so} "
                    f"after {format_duration(after_s * _PER_S)}",
                )
                break
            plugged = not plugged


def _times(number: int, entry: TimelineEntry) -> Iterator[tuple[float, int, str]]:
    with contextlib.suppress(UsageError):  # `timeline_mistakes` reports it
        yield from ((timed.after_s, number, entry.verb) for timed in schedule(entry))


def _command_mistakes(entry: TimelineEntry, disks: Mapping[str, DiskKind], machine: Mapping[str, int]) -> Iterator[str]:
    """Check the command of an entry; of a ramp every step, and a mistake of several steps is reported once."""
    steps = entry.steps + 1 if entry.ramp is not None else 1
    reported: set[str] = set()
    for step in range(steps):
        text = entry.do
        try:
            text = _interpolate(entry.do, step / max(1, steps - 1))
            found = list(_action_mistakes(commands.parse(text.split()), disks, machine))
        except UsageError as error:
            found = [*_disk_mistakes(text.split(), disks), str(error)]
        for mistake in found:
            if mistake not in reported:
                reported.add(mistake)
                yield f"{text!r}: {mistake}"


def _disk_mistakes(arguments: Sequence[str], disks: Mapping[str, DiskKind]) -> Iterator[str]:
    """Check the disk in a command that does not parse for another reason."""
    if len(arguments) > 1 and arguments[0] in commands.VERBS and arguments[1] not in disks:
        yield _unknown_disk(arguments[1], disks)


def _unknown_disk(name: str, disks: Mapping[str, DiskKind]) -> str:
    return f"expected one of the guest's disks ({', '.join(sorted(disks)) or 'it has none'}), got {name!r}"


def _action_mistakes(action: Action, disks: Mapping[str, DiskKind], machine: Mapping[str, int]) -> Iterator[str]:
    if action.disk == commands.MACHINE:
        most = machine[action.verb]
        if action.value is not None and not 0 < action.value <= most:
            own = format_size(most) if action.verb == "memory" else most
            yield f"expected at most the guest's own {own}, and more than none"
        return
    if action.disk not in disks:
        yield _unknown_disk(action.disk, disks)
    elif action.verb == "resize" and (keeps := disks[action.disk].keeps_size):
        yield keeps
    if action.verb == "throttle":
        yield from action.value.mistakes()
    if action.verb == "inject":
        yield from (mistake for fault in action.value for mistake in fault.mistakes())


def _timed_action(after_s: float, text: str) -> TimedAction:
    return TimedAction(after_s=after_s, text=text, action=commands.parse(text.split()))


def _interpolate(text: str, part: float) -> str:
    """Replace each FROM..TO by the value at a part of the way, from 0 to 1."""

    def value(match: re.Match[str]) -> str:
        begin, end = match[1] + (match[2] or match[4]), match[3] + match[4]
        try:
            if (match[2] or match[4]) in ("us", "ms", "s", "min"):
                return format_duration(round(_mix(parse_duration(begin), parse_duration(end), part)))
            return str(round(_mix(parse_size(begin), parse_size(end), part)))
        except ValueError as error:
            raise UsageError(f"{match[0]}: {error}") from None

    return _RANGE.sub(value, text)


def _mix(begin: float, end: float, part: float) -> float:
    return begin + (end - begin) * part
