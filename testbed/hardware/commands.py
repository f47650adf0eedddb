"""Parses and formats the command language for disks and the whole machine, on the command line and in timelines. Pure.

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
    """Parse a profile's name, limits by their names in QEMU, or `off`; `scale=FACTOR` multiplies them.

    QEMU's own rules are checked elsewhere.

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
    limits, mistakes = {}, _Mistakes()
    for name, value in mistakes.pairs(_at_least_one(words), "a limit such as iops-total=100"):
        limits[name] = 0
        with mistakes.collected():
            limits[name] = _limit(name, value)
    with mistakes.collected():
        result = from_qemu(limits)
    mistakes.raise_all()
    return result.scaled(scale)


def _limit(name: str, value: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        if "; write " in str(error):
            raise UsageError(f"{name}: {error}") from None
        such = "20M" if name.startswith("bps") and not name.endswith("length") else "100"
        raise UsageError(f"{name}: expected a number such as {such}, got {value!r}") from None


def parse_latency(words: Sequence[str]) -> Latency:
    """Parse one delay for everything, delays by direction, a profile's name, or `off`; `scale=FACTOR` divides them.

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
    result: dict[str, int] = {}
    mistakes = _Mistakes()
    for name, value in mistakes.pairs(_at_least_one(words), "a delay such as 5ms, or read=5ms"):
        with mistakes.collected():
            if name not in ("both", *known):
                raise UsageError(f"expected one of both, {', '.join(known)}, got {name!r}")
            places = ("read_us", "write_us", "flush_us") if name == "both" else (known[name],)
            result |= dict.fromkeys(places, _duration(name, value))
    mistakes.raise_all()
    delays = Latency(**result)
    if delays.none and delays.jitter_us:
        raise UsageError("jitter: expected a delay of both, read, write or flush beside it, got none")
    return delays


def parse_seconds(words: Sequence[str]) -> float:
    """Parse a duration, or `off`.

    :raise UsageError: it is neither.
    """
    if len(words) != 1:
        raise UsageError(f"expected a duration such as 5s, or {OFF}, got {' '.join(words) or 'nothing'}")
    return 0.0 if words[0] == OFF else _duration("duration", words[0]) / 1e6


def parse_disk_size(words: Sequence[str]) -> int:
    """Parse a size, in bytes.

    :raise UsageError: it is not a size, or 0.
    """
    try:
        result = parse_size(" ".join(words))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not result:
        raise UsageError("expected a size such as 2G, got 0")
    return result


def parse_memory(words: Sequence[str]) -> int | None:
    """Parse how much memory a guest keeps, in bytes; `off` (None): all.

    :raise UsageError: it is neither.
    """
    return None if list(words) == [OFF] else parse_disk_size(_at_least_one(words))


def parse_cpus(words: Sequence[str]) -> int | None:
    """Parse how many CPUs a guest keeps; `off` (None): all.

    :raise UsageError: it is neither.
    """
    match words:
        case [word] if word == OFF:
            return None
        case [word] if word.isdecimal():
            return int(word)
    raise UsageError(f"expected a number of CPUs, or {OFF}, got {' '.join(words) or 'nothing'}")


def parse_surprise(words: Sequence[str]) -> bool:
    """Parse whether a disk is removed by surprise.

    :raise UsageError: it is something else.
    """
    if list(words) not in ([], [SURPRISE]):
        raise UsageError(f"expected {SURPRISE}, or nothing, got {' '.join(words)!r}")
    return bool(words)


def parse_no_arguments(words: Sequence[str]) -> None:
    """:raise UsageError: there are arguments."""
    if words:
        raise UsageError(f"expected nothing more, got {' '.join(words)!r}")


def parse_faults(words: Sequence[str]) -> tuple[Fault, ...]:
    """Parse faults, `read-only`, or `off`. Whether a fault makes sense is checked elsewhere.

    A fault is `OPERATION=EFFECT[,count=N][,range=FROM-TO][,probability=P][,seed=N]`.

    :raise UsageError: it has another form.
    """
    match words:
        case [word] if word == OFF:
            return ()
        case [word] if word == READ_ONLY:
            return WORN
    result, mistakes = list[Fault](), _Mistakes()
    for word in _at_least_one(words):
        with mistakes.collected():
            result.append(_fault(word))
    mistakes.raise_all()
    return tuple(result)


def format_throttle(limits: Throttle) -> list[str]:
    """Format limits as `parse_throttle` reads them."""
    given = limits.given()
    return [f"{name.replace('_', '-')}={_rate(name, value)}" for name, value in given.items()] or [OFF]


def _rate(name: str, value: int) -> str:
    exact = format_size(value) if name.startswith("bps") or name == "iops_size" else str(value)
    return str(value) if "." in exact or name.endswith("_length") else exact


def format_latency(delays: Latency) -> list[str]:
    """Format delays as `parse_latency` reads them."""
    given = {field.name.removesuffix("_us"): getattr(delays, field.name) for field in fields(delays)}
    return [f"{name}={format_duration(value)}" for name, value in given.items() if value] or [OFF]


def format_faults(some: Iterable[Fault]) -> list[str]:
    """Format faults as `parse_faults` reads them."""
    return [_format_fault(fault) for fault in some] or [OFF]


def _format_fault(fault: Fault) -> str:
    text = f"{fault.operation}={fault.effect}"
    if fault.count is not None:
        text += f",count={fault.count}"
    if (fault.first, fault.end) != (0, END):
        text += f",range={fault.first}-{'' if fault.end == END else fault.end}"
    if fault.probability != 1.0:
        text += f",probability={fault.probability:g}"
    return f"{text},seed={fault.seed}" if fault.seed else text


def _fault(word: str) -> Fault:
    first, *more = word.split(",")
    mistakes = _Mistakes()
    values: dict[str, Any] = {}
    for name, value in mistakes.pairs([first], "a fault such as read=EIO"):
        values |= {"operation": name, "effect": value}
    for name, value in mistakes.pairs(more, "count=N, range=FROM-TO, probability=P or seed=N"):
        with mistakes.collected(f"{word}: "):
            values |= _fault_option(name, value)
    mistakes.raise_all()
    return Fault(**values)


def _fault_option(name: str, value: str) -> dict[str, Any]:
    """Parse one of a fault's options; returns the fields that it sets."""
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
    """:raise ValueError: it is not such a number."""
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"expected {expected}, got {value!r}") from None


def _at_least_one(words: Sequence[str]) -> Sequence[str]:
    if not words:
        raise UsageError(f"expected what to do, or {OFF}, got nothing")
    return words


def _duration(name: str, value: str) -> int:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _scale(words: Sequence[str]) -> tuple[float, Sequence[str]]:
    """Take the scale out of some words; returns the factor and the other words."""
    scales = [word for word in words if word.startswith("scale=")]
    try:
        factor = float(scales[0].partition("=")[2]) if scales else 1.0
    except ValueError:
        factor = 0.0
    if len(scales) > 1 or not 0 < factor < 1e6:
        raise UsageError(f"expected one scale such as scale=0.5, got {' '.join(scales)}")
    return factor, [word for word in words if word not in scales]


class _Mistakes:
    """Collects the mistakes in several words, to report them together."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    @contextlib.contextmanager
    def collected(self, before: str = "") -> Iterator[None]:
        """Collect a mistake of the block, and go on."""
        try:
            yield
        except (UsageError, ValueError) as error:
            self._texts.append(f"{before}{error}")

    def pairs(self, words: Iterable[str], example: str) -> Iterator[tuple[str, str]]:
        """Yield the words of the form NAME=VALUE, each name once; other words are mistakes."""
        names: set[str] = set()
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or not value:
                self._texts.append(f"expected {example}, got {word!r}")
            elif name in names:
                self._texts.append(f"expected each of them once, got {name!r} twice")
            else:
                names.add(name)
                yield name, value

    def raise_all(self) -> None:
        """:raise UsageError: there are mistakes; has all of them."""
        if self._texts:
            raise UsageError("; ".join(dict.fromkeys(self._texts)))


# The verbs for a disk, and the parser of the words after the disk's name.
VERBS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "throttle": parse_throttle,
    "delay": parse_latency,
    "inject": parse_faults,
    "hang": parse_seconds,
    "unplug": parse_surprise,
    "plug": parse_no_arguments,
    "resize": parse_disk_size,
}


# The verbs for the machine itself, and the parser of the words after the verb.
MACHINE_VERBS: Mapping[str, Callable[[Sequence[str]], int | None]] = {"memory": parse_memory, "cpus": parse_cpus}
MACHINE = "machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A command for one disk, or for the machine (MACHINE). `value`: the parsed words after the verb."""

    verb: str
    disk: str
    value: Any


def parse(words: Sequence[str]) -> Action:
    """Parse `VERB DISK WORD...`, or `VERB WORD...` for the machine. Whether the disk exists is checked elsewhere.

    :raise UsageError: it is not such a command.
    """
    verb, disk, *more = [*words, "", ""][: max(2, len(words))]
    if verb in MACHINE_VERBS:
        return Action(verb=verb, disk=MACHINE, value=MACHINE_VERBS[verb](words[1:]))
    if verb not in VERBS:
        raise UsageError(f"expected one of {', '.join((*VERBS, *MACHINE_VERBS))}, got {verb or 'nothing'!r}")
    if not disk:
        raise UsageError(f"expected the name of a disk after {verb}, got nothing")
    return Action(verb=verb, disk=disk, value=VERBS[verb](more))
