"""What was sampled while a scenario ran, as plots: rates and percentiles from the counters in a guest's folder of evidence.

A plot is a JSON object: `title`, `unit`, and `lines`, each with its `name`, `dash` (writes are dashed), and `y` over the `x` of the plot,
in seconds since sampling began. Counters only grow, so that leaving out samples makes rates coarser and loses nothing.
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
# More lines than that are not told apart; the busiest are drawn.
_MOST_LINES = 8
# A guest has a few; of what has more the first are drawn.
_MOST_NAMES = _MOST_MARKS = 1000
_WAYS = (("rd", "read", ""), ("wr", "write", "dash"))
_SHARES = (0.5, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What was recorded of one guest. `begin_s`: its uptime when sampling began, 0 of all plots; `kills`: (seconds, group, how many)."""

    begin_s: float | None
    plots: tuple[dict[str, Any], ...]
    marks: tuple[tuple[float, str], ...]
    kills: tuple[tuple[float, str, int], ...]


def read_recording(folder: Path, evidence: str, most_points: int) -> Recording:
    """Of one guest, whose evidence is below a run's folder, with at most so many points a line; what is not there, or no sample, is left
    out."""
    disks = list(samples.disks(folder, f"{evidence}/{disk_sampler.LOG}"))
    groups = list(samples.groups(folder, f"{evidence}/{cgroup_sampler.LOG}"))
    begin = min((found[0]["guest_s"] for found in (disks, groups) if found), default=None)
    if begin is None:
        return Recording(begin_s=None, plots=(), marks=(), kills=())
    plots = [*_disk_plots(_thinned(disks, most_points), begin), *_group_plots(_whole(groups, most_points), begin)]
    acts = islice(samples.acts(folder, f"{evidence}/{timeline.LOG}"), _MOST_MARKS)
    return Recording(
        begin_s=begin,
        plots=tuple(plot for plot in plots if plot["lines"]),
        marks=tuple((round(act["guest_s"] - begin, 2), _said(act)) for act in acts),
        kills=tuple(islice(_kills(groups, begin), _MOST_MARKS)),
    )


def _whole(changes: list[Point], most: int) -> list[Point]:
    """Of samples of groups at most so many, with all groups that there were then, not only those that had counted."""
    chosen, known, found = set(_chosen(len(changes), most)), dict[str, Any](), []
    for number, sample in enumerate(changes):
        for name, group in sample["groups"].items():
            if group is None:
                known.pop(name, None)
            elif name in known or len(known) < _MOST_NAMES:
                known[name] = group
        if number in chosen:
            found.append({"guest_s": sample["guest_s"], "groups": dict(known)})
    return found


def _thinned(samples: list[Point], most: int) -> list[Point]:
    return [samples[number] for number in _chosen(len(samples), most)]


def _chosen(count: int, most: int) -> list[int]:
    """The numbers of at most so many samples, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    step = (count - 1) / (most - 1)
    return [round(number * step) for number in range(most)]


def _said(act: Point) -> str:
    if "reached" in act:
        return str(act["reached"])
    return f"{act.get('do', '')} failed: {act['error']}" if "error" in act else str(act.get("do", ""))


def _first(found: Iterable[T]) -> list[T]:
    """Each once, in their order, and no more than `_MOST_NAMES`."""
    return list(dict.fromkeys(found))[:_MOST_NAMES]


def _plot(
    title: str, unit: str, x: list[float], lines: Iterable[tuple[str, str, list[float | None]]]
) -> dict[str, Any]:
    """The lines that are not all zero; of many the highest."""
    moving = [(name, dash, y) for name, dash, y in lines if any(y)]
    kept = sorted(moving, key=lambda line: -max(value or 0 for value in line[2]))[:_MOST_LINES]
    lines = [line for line in moving if line in kept]
    drawn = [
        {"name": name, "dash": dash, "y": [None if value is None else _short(value) for value in y]}
        for name, dash, y in lines
    ]
    return {"title": title, "unit": unit, "x": x, "lines": drawn, "left_out": len(moving) - len(kept)}


def _short(value: float) -> float:
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def _times(samples: list[Point], begin: float) -> list[float]:
    return [round(sample["guest_s"] - begin, 2) for sample in samples]


def _rates(samples: list[Point], counter: Callable[[Point], float | None], scale: float) -> list[float | None]:
    """Per second since the sample before; None for the first one, and where the counter is not there.

    One that was not there before has counted from 0, and so has one that is smaller than it was: a disk that was plugged in again.
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


def _disk_plots(samples: list[Point], begin: float) -> Iterator[dict[str, Any]]:
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


def _group_plots(samples: list[Point], begin: float) -> Iterator[dict[str, Any]]:
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
    held = (
        (f"{name} {key}", dash, [_scaled(_picked("groups", name, key)(sample), MIB) for sample in samples])
        for name in names
        for key, dash in (("file", ""), ("shmem", "dash"), ("anon", "dot"))
    )
    yield _plot("Control groups' memory", "MiB", x, held)
    stalls = (
        (f"{name} {what}", dash, _rates(samples, _picked("groups", name, key), 1e4))
        for name in names
        for what, key, dash in (("io", "io_stall_us", ""), ("memory", "memory_stall_us", "dash"))
    )
    yield _plot("Control groups' pressure: time in which some task waited", "%", x, stalls)


def _picked(*path: str) -> Callable[[Point], float | None]:
    def pick(sample: Point) -> float | None:
        found: Any = sample
        try:
            for key in path:
                found = found[key]
        except (KeyError, TypeError):
            return None
        return found if type(found) in (int, float) else None

    return pick


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _percentiles(samples: list[Point], name: str, way: str) -> dict[float, list[float | None]]:
    """Milliseconds that each of _SHARES of the requests took at most, between each two samples; None where there were none."""
    found: dict[float, list[float | None]] = {share: [None] for share in _SHARES}
    bins = [sample["disks"].get(name, {}).get(way, {}).get("latency") for sample in samples]
    for old, new in pairwise(bins):
        if new == old or not isinstance(new, list) or len(new) != len(BOUNDARIES_NS) + 1:
            since = []
        else:
            since = [max(0, count - then) for count, then in zip(new, old or [0] * len(new), strict=False)]
        for share, line in found.items():
            line.append(percentile_ms(since, share))
    return found if samples else {}


def percentile_ms(counts: list[int], share: float) -> float | None:
    """Of a histogram with QEMU's bins below each of BOUNDARIES_NS and above the last; inside a bin as if they were spread evenly."""
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    edges: tuple[int, ...] = (0, *BOUNDARIES_NS, BOUNDARIES_NS[-1] * 2)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        if count and below + count >= wanted:
            return (low + (high - low) * (wanted - below) / count) / 1e6
        below += count
    return edges[-1] / 1e6


def _kills(changes: list[Point], begin: float) -> Iterator[tuple[float, str, int]]:
    seen: dict[str, int] = {}
    for sample in changes:
        for name, group in sample["groups"].items():
            count = (group or {}).get("oom_kill", 0)
            if count > seen.get(name, 0):
                yield round(sample["guest_s"] - begin, 2), name, count - seen.get(name, 0)
            if group is not None:
                seen[name] = count
