"""A timeline's acts to what is done when. Pure.

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
_MOST_PLUGS = 1000  # of a disk that is plugged every so often, for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedAction:
    """An action, and when: seconds after the act's beginning."""

    after_s: float
    text: str
    action: Action


def schedule(act: TimelineEntry) -> Iterator[TimedAction]:
    """All that an act does, in order; without an end where it is `every` so long and no number of times.

    :raise UsageError: it is not understood.
    """
    begin = (act.at or 0) / _PER_S
    if act.ramp is not None:
        for step in range(act.steps + 1):
            yield _cue(begin + act.ramp / _PER_S * step / act.steps, _between(act.do, step / act.steps))
    elif act.every is not None:
        for number in itertools.count() if act.times is None else range(act.times):
            yield _cue(begin + act.every / _PER_S * number, act.do)
    else:
        yield _cue(begin, act.do)


def format_entry(act: TimelineEntry) -> str:
    """An act in words."""
    when = act.when
    begin = f"after {format_duration(act.at)}" if act.at else "at once" if when is None else ""
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
    if act.ramp is not None:
        begin += f", over {format_duration(act.ramp)} in {act.steps} steps"
    if act.every is not None:
        begin += f", every {format_duration(act.every)}" + (f", {act.times} times" if act.times else "")
    return f"{begin}: {act.do}"


def timeline_mistakes(
    act: TimelineEntry, disks: Mapping[str, DiskKind], *, memory_bytes: int, cpus: int
) -> Iterator[str]:
    """What is wrong with an act, in words; `disks`: those and the namespaces that its guest has, and of which kind each is."""
    if act.when is not None:
        yield from act.when.mistakes()
    if act.at is None and act.when is None and act.every is None and act.ramp is None:
        yield "expected at, when, every or ramp, got none: when shall it be?"
    if act.every is not None and act.ramp is not None:
        yield "expected every or ramp, got both"
    if act.times is not None and act.every is None:
        yield "expected every beside times, got none"
    if (act.ramp is not None) != (_RANGE.search(act.do) is not None):
        yield f"expected ramp, and FROM..TO in what it does, got one of them: {act.do!r}"
    yield from _mistakes_of_words(act, disks, {"memory": memory_bytes, "cpus": cpus})


def hotplug_mistakes(acts: Sequence[TimelineEntry], hot: Mapping[str, bool]) -> Iterator[tuple[int, str]]:
    """Acts that unplug a disk which is unplugged by then, or plug one that is there: the number of each disk's first, and what is wrong.
    Where an event decides when a disk is plugged or unplugged, that is not known. `hot`: whether
    each disk or namespace can be plugged while its guest runs.
    """
    of_disks: dict[str, list[tuple[int, TimelineEntry]]] = {}
    for number, act in enumerate(acts):
        if act.verb in (_PLUG, _UNPLUG):
            of_disks.setdefault(next(iter(act.do.split()[1:]), ""), []).append((number, act))
    for disk, own in of_disks.items():
        if not hot.get(disk, True):
            can = ", ".join(name for name, is_hot in hot.items() if is_hot) or "it has none"
            yield (
                own[0][0],
                f"{own[0][1].do!r}: expected a disk that can be plugged while its guest runs ({can}), got {disk!r}",
            )
            continue
        if disk not in hot or any(act.when is not None for _, act in own):
            continue  # of one that there is not, the act itself says so
        plugged = True
        for after_s, number, verb in itertools.islice(
            heapq.merge(*(_times(number, act) for number, act in own)), _MOST_PLUGS
        ):
            if (verb == _PLUG) == plugged:
                is_so = "is plugged" if plugged else "is unplugged already"
                yield (
                    number,
                    f"{acts[number].do!r}: expected a disk to {verb}, {disk!r} {is_so} after {format_duration(after_s * _PER_S)}",
                )
                break
            plugged = not plugged


def _times(number: int, act: TimelineEntry) -> Iterator[tuple[float, int, str]]:
    with contextlib.suppress(UsageError):  # told elsewhere
        yield from ((cue.after_s, number, act.verb) for cue in schedule(act))


def _mistakes_of_words(act: TimelineEntry, disks: Mapping[str, DiskKind], machine: Mapping[str, int]) -> Iterator[str]:
    """What is wrong with what an act does; of a ramp each step is looked at, and what several have is told once."""
    steps = act.steps + 1 if act.ramp is not None else 1  # one that is done again and again says the same each time
    said: set[str] = set()
    for step in range(steps):
        text = act.do
        try:
            text = _between(act.do, step / max(1, steps - 1))
            found = list(_mistakes(commands.parse(text.split()), disks, machine))
        except UsageError as error:
            found = [*_of_disk(text.split(), disks), str(error)]
        for mistake in found:
            if mistake not in said:
                said.add(mistake)
                yield f"{text!r}: {mistake}"


def _of_disk(some: Sequence[str], disks: Mapping[str, DiskKind]) -> Iterator[str]:
    """Whether words that are wrong otherwise name a disk that there is."""
    if len(some) > 1 and some[0] in commands.VERBS and some[1] not in disks:
        yield _no_disk(some[1], disks)


def _no_disk(name: str, disks: Mapping[str, DiskKind]) -> str:
    return f"expected one of the guest's disks ({', '.join(sorted(disks)) or 'it has none'}), got {name!r}"


def _mistakes(action: Action, disks: Mapping[str, DiskKind], machine: Mapping[str, int]) -> Iterator[str]:
    if action.disk == commands.MACHINE:
        most = machine[action.verb]
        if action.value is not None and not 0 < action.value <= most:
            yield f"expected at most the guest's own {format_size(most) if action.verb == 'memory' else most}, and more than none"
        return
    if action.disk not in disks:
        yield _no_disk(action.disk, disks)
    elif action.verb == "resize" and (keeps := disks[action.disk].keeps_size):
        yield keeps
    if action.verb == "throttle":
        yield from action.value.mistakes()
    if action.verb == "inject":
        yield from (mistake for fault in action.value for mistake in fault.mistakes())


def _cue(after_s: float, text: str) -> TimedAction:
    return TimedAction(after_s=after_s, text=text, action=commands.parse(text.split()))


def _between(text: str, part: float) -> str:
    """The text with each FROM..TO at that part of its way."""

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
