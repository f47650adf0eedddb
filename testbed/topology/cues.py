"""A timeline's acts to what is done when. Pure.

do: throttle data iops-total=1000..100     with  ramp: 10s  is eleven actions, one each second.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from testbed.errors import UsageError
from testbed.hardware import words
from testbed.hardware.disks import DiskKind
from testbed.hardware.words import Action
from testbed.topology.timelines import Act
from testbed.units import format_duration, format_size, parse_duration, parse_size

_RANGE = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)\.\.(\d+(?:\.\d+)?)([A-Za-z]*)")
_PER_S = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """An action, and when: seconds after the act's beginning."""

    after_s: float
    text: str
    action: Action


def cues(act: Act) -> Iterator[Cue]:
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


def said(act: Act) -> str:
    """An act in words."""
    when = act.when
    begin = f"after {format_duration(act.at)}" if act.at else "at once" if when is None else ""
    if when is not None:
        bound = f"above {when.above}" if when.above is not None else f"below {when.below}"
        event = (
            f"mark {when.mark}" if when.mark else f"console {when.console!r}" if when.console else f"{when.cgroup}/{when.counter} {bound}"
        )
        begin = f"when {event}" + (f", {begin}" if begin else "")
    if act.ramp is not None:
        begin += f", over {format_duration(act.ramp)} in {act.steps} steps"
    if act.every is not None:
        begin += f", every {format_duration(act.every)}" + (f", {act.times} times" if act.times else "")
    return f"{begin}: {act.do}"


def mistakes(act: Act, disks: Mapping[str, DiskKind], *, memory_bytes: int, cpus: int) -> Iterator[str]:
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
        return
    try:
        # An endless one says the same each time.
        some = list(itertools.islice(cues(act), act.steps + 1))
    except UsageError as error:
        yield f"{act.do!r}: {error}"
        return
    for cue in some:
        for mistake in _mistakes(cue.action, disks, {"memory": memory_bytes, "cpus": cpus}):
            yield f"{cue.text!r}: {mistake}"
            return


def _mistakes(action: Action, disks: Mapping[str, DiskKind], machine: Mapping[str, int]) -> Iterator[str]:
    if action.disk == words.MACHINE:
        most = machine[action.verb]
        if action.value is not None and not 0 < action.value <= most:
            yield f"expected at most the guest's own {format_size(most) if action.verb == 'memory' else most}, and more than none"
        return
    if action.disk not in disks:
        yield f"expected one of the guest's disks ({', '.join(sorted(disks)) or 'it has none'}), got {action.disk!r}"
    elif action.verb == "resize" and (keeps := disks[action.disk].keeps_size):
        yield keeps
    if action.verb == "throttle":
        yield from action.value.mistakes()
    if action.verb == "inject":
        yield from (mistake for fault in action.value for mistake in fault.mistakes())


def _cue(after_s: float, text: str) -> Cue:
    return Cue(after_s=after_s, text=text, action=words.action(text.split()))


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
