"""Makes plots of the samples in a guest's log folder: rates and percentiles of counters.

Counters only grow, so that skipping samples makes rates coarser but loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

from testbed.guest import timeline
from testbed.guest.metrics import cgroup_sampler, disk_sampler
from testbed.guest.metrics.disk_sampler import BOUNDARIES_NS
from testbed.report import samples
from testbed.report.samples import Point
from testbed.units import MIB

T = TypeVar("T")
# A reader cannot tell more lines apart; those with the highest values are drawn.
_MOST_LINES = 8
# A guest has a few; of more only the first are drawn.
_MOST_NAMES = _MOST_MARKS = 1000
_WAYS = (("rd", "read", ""), ("wr", "write", "dash"))
_SHARES = (0.5, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a plot. `dash`: its style, "" for a solid line (writes are dashed); `y`: None where there is no
    value."""

    name: str
    dash: str
    y: list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """`x`: of all lines, in seconds since sampling began; `left_out`: how many other lines are not drawn."""

    title: str
    unit: str
    x: list[float]
    lines: list[Line]
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The plots of one guest. `begin_s`: its uptime when sampling began, which is 0 in all plots; `marks`: actions of
    its timeline, as (seconds, text); `kills`: by the OOM killer, as (seconds, group, how many)."""

    begin_s: float | None
    plots: tuple[Plot, ...]
    marks: tuple[tuple[float, str], ...]
    kills: tuple[tuple[float, str, int], ...]


def read_recording(folder: Path, evidence: str, most_points: int) -> Recording:
    """Read the recording of one guest, with at most `most_points` points on each line. `evidence`: the folder of its
    logs, relative to the run's folder. Files that do not exist and lines that are no samples are skipped."""
    disks = list(samples.disk_samples(folder, f"{evidence}/{disk_sampler.LOG}"))
    groups = list(samples.cgroup_samples(folder, f"{evidence}/{cgroup_sampler.LOG}"))
    begin = min((series[0]["guest_s"] for series in (disks, groups) if series), default=None)
    if begin is None:
        return Recording(begin_s=None, plots=(), marks=(), kills=())
    plots = [
        *_disk_plots(_thin_samples(disks, most_points), begin),
        *_group_plots(_thin_cgroup_samples(groups, most_points), begin),
    ]
    actions = islice(samples.timed_actions(folder, f"{evidence}/{timeline.LOG}"), _MOST_MARKS)
    return Recording(
        begin_s=begin,
        plots=tuple(plot for plot in plots if plot.lines),
        marks=tuple((round(action["guest_s"] - begin, 2), _mark(action)) for action in actions),
        kills=tuple(islice(_kills(groups, begin), _MOST_MARKS)),
    )


def _thin_cgroup_samples(changes: list[Point], most: int) -> list[Point]:
    """Choose at most `most` samples. A sample lists the groups whose counters changed; the result lists all groups."""
    numbers, groups, chosen_samples = set(_chosen(len(changes), most)), dict[str, Any](), []
    for number, sample in enumerate(changes):
        for name, group in sample["groups"].items():
            if group is None:
                groups.pop(name, None)
            elif name in groups or len(groups) < _MOST_NAMES:
                groups[name] = group
        if number in numbers:
            chosen_samples.append({"guest_s": sample["guest_s"], "groups": dict(groups)})
    return chosen_samples


def _thin_samples(samples: list[Point], most: int) -> list[Point]:
    return [samples[number] for number in _chosen(len(samples), most)]


def _chosen(count: int, most: int) -> list[int]:
    """Choose at most `most` of `count` samples, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    step = (count - 1) / (most - 1)
    return [round(number * step) for number in range(most)]


def _mark(action: Point) -> str:
    if "reached" in action:
        return str(action["reached"])
    return f"{action.get('do', '')} failed: {action['error']}" if "error" in action else str(action.get("do", ""))


def _first(values: Iterable[T]) -> list[T]:
    """Return the first `_MOST_NAMES` different values, in their order."""
    return list(dict.fromkeys(values))[:_MOST_NAMES]


def _plot(title: str, unit: str, x: list[float], lines: Iterable[tuple[str, str, list[float | None]]]) -> Plot:
    """Make a plot of the lines that are not all zero; of too many lines, of those with the highest values."""
    moving = [(name, dash, y) for name, dash, y in lines if any(y)]
    kept = sorted(moving, key=lambda line: -max(value or 0 for value in line[2]))[:_MOST_LINES]
    lines = [line for line in moving if line in kept]
    drawn = [
        Line(name=name, dash=dash, y=[None if value is None else _short(value) for value in y])
        for name, dash, y in lines
    ]
    return Plot(title=title, unit=unit, x=x, lines=drawn, left_out=len(moving) - len(kept))


def _short(value: float) -> float:
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def _times(samples: list[Point], begin: float) -> list[float]:
    return [round(sample["guest_s"] - begin, 2) for sample in samples]


def _rates(samples: list[Point], counter: Callable[[Point], float | None], scale: float) -> list[float | None]:
    """Return the rate of a counter per second since the previous sample; None for the first sample, and without a
    counter.

    A new counter has counted from 0, and so has one that is smaller than before: its disk was plugged in again.
    """
    values = [counter(sample) for sample in samples]
    rates: list[float | None] = [None]
    for number, (old, new) in enumerate(pairwise(values), 1):
        seconds = samples[number]["guest_s"] - samples[number - 1]["guest_s"]
        if new is None or seconds <= 0:
            rates.append(None)
        else:
            rates.append((new - old if old is not None and new >= old else new) / seconds / scale)
    return rates if samples else []


def _disk_plots(samples: list[Point], begin: float) -> Iterator[Plot]:
    x = _times(samples, begin)
    names = _first(name for sample in samples for name in sample["disks"])

    def of(key: str, scale: float) -> Iterator[tuple[str, str, list[float | None]]]:
        for name in names:
            for way, word, dash in _WAYS:
                yield f"{name} {word}", dash, _rates(samples, _picked("disks", name, way, key), scale)

    yield _plot("Disk bandwidth", "MiB/s", x, of("bytes", MIB))
    yield _plot("Disk requests", "requests/s", x, of("requests", 1))
    latencies = (
        (f"{name} {word} p{round(share * 100)}", dash, line)
        for name in names
        for way, word, dash in _WAYS
        for share, line in _percentiles(samples, name, way).items()
    )
    yield _plot("Disk latency", "ms", x, latencies)


def _group_plots(samples: list[Point], begin: float) -> Iterator[Plot]:
    x = _times(samples, begin)
    pairs = _first(
        (name, device)
        for sample in samples
        for name, group in sample["groups"].items()
        for device in group.get("io", ())
    )
    names = _first(name for sample in samples for name in sample["groups"])

    def of(keys: tuple[str, str], scale: float) -> Iterator[tuple[str, str, list[float | None]]]:
        for name, device in pairs:
            for key, (_, word, dash) in zip(keys, _WAYS, strict=True):
                yield (
                    f"{name} on {device} {word}",
                    dash,
                    _rates(samples, _picked("groups", name, "io", device, key), scale),
                )

    yield _plot("Control groups' bandwidth", "MiB/s", x, of(("rbytes", "wbytes"), MIB))
    yield _plot("Control groups' requests", "requests/s", x, of(("rios", "wios"), 1))
    memory = (
        (f"{name} {key}", dash, [_scaled(_picked("groups", name, key)(sample), MIB) for sample in samples])
        for name in names
        for key, dash in (("file", ""), ("shmem", "dash"), ("anon", "dot"))
    )
    yield _plot("Control groups' memory", "MiB", x, memory)
    stalls = (
        (f"{name} {what}", dash, _rates(samples, _picked("groups", name, key), 1e4))
        for name in names
        for what, key, dash in (("io", "io_stall_us", ""), ("memory", "memory_stall_us", "dash"))
    )
    yield _plot("Control groups' pressure: time in which some task waited", "%", x, stalls)


def _picked(*path: str) -> Callable[[Point], float | None]:
    def pick(sample: Point) -> float | None:
        value: Any = sample
        try:
            for key in path:
                value = value[key]
        except (KeyError, TypeError):
            return None
        return value if type(value) in (int, float) else None

    return pick


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _percentiles(samples: list[Point], name: str, way: str) -> dict[float, list[float | None]]:
    """Return the latency in milliseconds below which each of _SHARES of the requests stayed, between each two samples;
    None without requests."""
    lines: dict[float, list[float | None]] = {share: [None] for share in _SHARES}
    bins = [sample["disks"].get(name, {}).get(way, {}).get("latency") for sample in samples]
    for old, new in pairwise(bins):
        if new == old or not isinstance(new, list) or len(new) != len(BOUNDARIES_NS) + 1:
            since = []
        else:
            since = [max(0, count - then) for count, then in zip(new, old or [0] * len(new), strict=False)]
        for share, line in lines.items():
            line.append(percentile_ms(since, share))
    return lines if samples else {}


def percentile_ms(counts: list[int], share: float) -> float | None:
    """Return a percentile of a histogram with QEMU's bins, one below each of BOUNDARIES_NS and one above the last.
    Requests of a bin are taken to be spread evenly over it."""
    total = sum(counts)
    if not total:
        return None
    rank, below = share * total, 0
    edges: tuple[int, ...] = (0, *BOUNDARIES_NS, BOUNDARIES_NS[-1] * 2)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        if count and below + count >= rank:
            return (low + (high - low) * (rank - below) / count) / 1e6
        below += count
    return edges[-1] / 1e6


def _kills(changes: list[Point], begin: float) -> Iterator[tuple[float, str, int]]:
    kills: dict[str, int] = {}
    for sample in changes:
        for name, group in sample["groups"].items():
            count = (group or {}).get("oom_kill", 0)
            if count > kills.get(name, 0):
                yield round(sample["guest_s"] - begin, 2), name, count - kills.get(name, 0)
            if group is not None:
                kills[name] = count
