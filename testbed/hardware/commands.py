"""How people write what a disk, or the whole machine, shall do, on the command line and in timelines. Pure.

throttle data hdd-7200 scale=0.5         throttle data iops-total=100 bps-read=20M      throttle data off
delay data 5ms                           delay data read=1ms jitter=200us               delay data off
inject data read=EIO write=torn,count=1  inject data write=ENOSPC,range=1M-2M           inject data off
hang data 5s      unplug data      unplug data surprise      plug data      resize data 2G
memory 128M       memory off       cpus 1                    cpus off
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from testbed.errors import UsageError
from testbed.hardware.faults import END, WORN, Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.profiles import PROFILES
from testbed.hardware.throttle import Throttle, from_qemu
from testbed.units import format_duration, format_size, parse_duration, parse_size

OFF, READ_ONLY, SURPRISE = "off", "read-only", "surprise"


def parse_throttle(words: Sequence[str]) -> Throttle:
    """A profile's limits, limits by their names in QEMU, or none; `scale=FACTOR` multiplies them. What QEMU would refuse is not seen here.

    :raise UsageError: it is none of these.
    """
    scale, words = _scale(words)
    match words:
        case [word] if word == OFF:
            return Throttle()
        case [word] if word in PROFILES:
            return PROFILES[word].scaled(scale).throttle
        case [word] if "=" not in word:
            raise UsageError(
                f"expected {OFF}, a profile ({', '.join(PROFILES)}) or limits such as iops-total=100, got {word!r}"
            )
        case [*several] if alone := [word for word in several if word == OFF or word in PROFILES]:
            raise UsageError(f"expected {alone[0]} alone, or beside a scale, got {' '.join(several)}")
    limits, wrong = {}, _Wrong()
    for name, value in wrong.pairs(_some(words), "a limit such as iops-total=100"):
        limits[name] = 0
        with wrong.noting():
            limits[name] = _limit(name, value)
    with wrong.noting():
        found = from_qemu(limits)
    wrong.refuse()
    return found.scaled(scale)


def _limit(name: str, value: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        if "; write " in str(error):
            raise UsageError(f"{name}: {error}") from None
        such = "20M" if name.startswith("bps") and not name.endswith("length") else "100"
        raise UsageError(f"{name}: expected a number such as {such}, got {value!r}") from None


def parse_latency(words: Sequence[str]) -> Latency:
    """A delay of everything, delays by direction, a profile's, or none; `scale=FACTOR` divides them.

    :raise UsageError: it is none of these.
    """
    scale, words = _scale(words)
    return _latency(words).scaled(scale)


def _latency(words: Sequence[str]) -> Latency:
    match words:
        case [word] if word == OFF:
            return NO_DELAY
        case [word] if word in PROFILES:
            return PROFILES[word].latency
        case [word] if "=" not in word:
            every = _duration("delay", word)
            return Latency(read_us=every, write_us=every, flush_us=every)
    known = {field.name.removesuffix("_us"): field.name for field in fields(Latency)}
    found: dict[str, int] = {}
    wrong = _Wrong()
    for name, value in wrong.pairs(_some(words), "a delay such as 5ms, or read=5ms"):
        with wrong.noting():
            if name not in ("both", *known):
                raise UsageError(f"expected one of both, {', '.join(known)}, got {name!r}")
            places = ("read_us", "write_us", "flush_us") if name == "both" else (known[name],)
            found |= dict.fromkeys(places, _duration(name, value))
    wrong.refuse()
    delays = Latency(**found)
    if delays.none and delays.jitter_us:
        raise UsageError("jitter: expected a delay of both, read, write or flush beside it, got none")
    return delays


def parse_seconds(words: Sequence[str]) -> float:
    """A duration, or none.

    :raise UsageError: it is neither.
    """
    if len(words) != 1:
        raise UsageError(f"expected a duration such as 5s, or {OFF}, got {' '.join(words) or 'nothing'}")
    return 0.0 if words[0] == OFF else _duration("duration", words[0]) / 1e6


def parse_disk_size(words: Sequence[str]) -> int:
    """A size in bytes.

    :raise UsageError: it is none, or nothing.
    """
    try:
        found = parse_size(" ".join(words))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not found:
        raise UsageError("expected a size such as 2G, got 0")
    return found


def parse_memory(words: Sequence[str]) -> int | None:
    """What a guest keeps of its memory, in bytes, or all of it.

    :raise UsageError: it is neither.
    """
    return None if list(words) == [OFF] else parse_disk_size(_some(words))


def parse_cpus(words: Sequence[str]) -> int | None:
    """How many CPUs a guest keeps, or all of them.

    :raise UsageError: it is neither.
    """
    match words:
        case [word] if word == OFF:
            return None
        case [word] if word.isdecimal():
            return int(word)
    raise UsageError(f"expected a number of CPUs, or {OFF}, got {' '.join(words) or 'nothing'}")


def parse_surprise(words: Sequence[str]) -> bool:
    """Whether a disk goes by surprise.

    :raise UsageError: it is something else.
    """
    if list(words) not in ([], [SURPRISE]):
        raise UsageError(f"expected {SURPRISE}, or nothing, got {' '.join(words)!r}")
    return bool(words)


def parse_no_arguments(words: Sequence[str]) -> None:
    """:raise UsageError: it is something."""
    if words:
        raise UsageError(f"expected nothing more, got {' '.join(words)!r}")


def parse_faults(words: Sequence[str]) -> tuple[Fault, ...]:
    """Faults, each `OPERATION=EFFECT[,count=N][,range=FROM-TO][,probability=P][,seed=N]`, `read-only`, or none. What a fault cannot be
    is not seen here.

    :raise UsageError: it is not written so.
    """
    match words:
        case [word] if word == OFF:
            return ()
        case [word] if word == READ_ONLY:
            return WORN
    found, wrong = list[Fault](), _Wrong()
    for word in _some(words):
        with wrong.noting():
            found.append(_fault(word))
    wrong.refuse()
    return tuple(found)


def format_throttle(limits: Throttle) -> list[str]:
    """Limits as `throttle` reads them."""
    given = limits.given()
    return [f"{name.replace('_', '-')}={_rate(name, value)}" for name, value in given.items()] or [OFF]


def _rate(name: str, value: int) -> str:
    exact = format_size(value) if name.startswith("bps") or name == "iops_size" else str(value)
    return str(value) if "." in exact or name.endswith("_length") else exact


def format_latency(delays: Latency) -> list[str]:
    """Delays as `latency` reads them."""
    given = {field.name.removesuffix("_us"): getattr(delays, field.name) for field in fields(delays)}
    return [f"{name}={format_duration(value)}" for name, value in given.items() if value] or [OFF]


def format_faults(some: Iterable[Fault]) -> list[str]:
    """Faults as `faults` reads them."""
    return [_said_fault(fault) for fault in some] or [OFF]


def _said_fault(fault: Fault) -> str:
    said = f"{fault.operation}={fault.effect}"
    if fault.count is not None:
        said += f",count={fault.count}"
    if (fault.first, fault.end) != (0, END):
        said += f",range={fault.first}-{'' if fault.end == END else fault.end}"
    if fault.probability != 1.0:
        said += f",probability={fault.probability:g}"
    return f"{said},seed={fault.seed}" if fault.seed else said


def _fault(word: str) -> Fault:
    first, *more = word.split(",")
    wrong = _Wrong()
    said: dict[str, Any] = {}
    for name, value in wrong.pairs([first], "a fault such as read=EIO"):
        said |= {"operation": name, "effect": value}
    for name, value in wrong.pairs(more, "count=N, range=FROM-TO, probability=P or seed=N"):
        with wrong.noting(f"{word}: "):
            said |= _of_fault(name, value)
    wrong.refuse()
    return Fault(**said)


def _of_fault(name: str, value: str) -> dict[str, Any]:
    """The fields of a fault that one of its words sets."""
    try:
        match name:
            case "count" | "seed":
                return {name: _number(int, value, "a whole number")}
            case "probability":
                return {name: _number(float, value, "a number")}
            case "range":
                begin, _, end = value.partition("-")
                return {"first": parse_size(begin) if begin != "0" else 0, "end": parse_size(end) if end else END}
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    raise UsageError(f"expected count, range, probability or seed, got {name!r}")


def _number(kind: type[int] | type[float], value: str, expected: str) -> int | float:
    """:raise ValueError: it is none."""
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"expected {expected}, got {value!r}") from None


def _some(words: Sequence[str]) -> Sequence[str]:
    if not words:
        raise UsageError(f"expected what to do, or {OFF}, got nothing")
    return words


def _duration(name: str, value: str) -> int:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _scale(words: Sequence[str]) -> tuple[float, Sequence[str]]:
    """The factor that is said among some words, and the others."""
    said = [word for word in words if word.startswith("scale=")]
    try:
        factor = float(said[0].partition("=")[2]) if said else 1.0
    except ValueError:
        factor = 0.0
    if len(said) > 1 or not 0 < factor < 1e6:
        raise UsageError(f"expected one scale such as scale=0.5, got {' '.join(said)}")
    return factor, [word for word in words if word not in said]


class _Wrong:
    """Mistakes in words that are looked at one by one, to be told together."""

    def __init__(self) -> None:
        self._said: list[str] = []

    @contextlib.contextmanager
    def noting(self, before: str = "") -> Iterator[None]:
        """Go on after a mistake of the block."""
        try:
            yield
        except (UsageError, ValueError) as error:
            self._said.append(f"{before}{error}")

    def pairs(self, words: Iterable[str], example: str) -> Iterator[tuple[str, str]]:
        """The words that are NAME=VALUE, each name once; the others are mistakes."""
        seen: set[str] = set()
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or not value:
                self._said.append(f"expected {example}, got {word!r}")
            elif name in seen:
                self._said.append(f"expected each of them once, got {name!r} twice")
            else:
                seen.add(name)
                yield name, value

    def refuse(self) -> None:
        """:raise UsageError: there are mistakes; names all."""
        if self._said:
            raise UsageError("; ".join(dict.fromkeys(self._said)))


# What can be done with a disk, and how the words after its name are read.
VERBS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "throttle": parse_throttle,
    "delay": parse_latency,
    "inject": parse_faults,
    "hang": parse_seconds,
    "unplug": parse_surprise,
    "plug": parse_no_arguments,
    "resize": parse_disk_size,
}


# What can be done with the machine itself, and how the words after the verb are read.
MACHINE_VERBS: Mapping[str, Callable[[Sequence[str]], int | None]] = {"memory": parse_memory, "cpus": parse_cpus}
MACHINE = "machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing to do with one disk, or with the machine (MACHINE). `value`: what the verb's words were read as."""

    verb: str
    disk: str
    value: Any


def parse(words: Sequence[str]) -> Action:
    """`VERB DISK WORD...`, or `VERB WORD...` for the machine. Whether there is such a disk is not seen here.

    :raise UsageError: it is not understood.
    """
    verb, disk, *more = [*words, "", ""][: max(2, len(words))]
    if verb in MACHINE_VERBS:
        return Action(verb=verb, disk=MACHINE, value=MACHINE_VERBS[verb](words[1:]))
    if verb not in VERBS:
        raise UsageError(f"expected one of {', '.join((*VERBS, *MACHINE_VERBS))}, got {verb or 'nothing'!r}")
    if not disk:
        raise UsageError(f"expected the name of a disk after {verb}, got nothing")
    return Action(verb=verb, disk=disk, value=VERBS[verb](more))
