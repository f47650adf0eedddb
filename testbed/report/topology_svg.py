"""Draws guests as SVG: the disks of each at the bottom, the devices and filesystems on them above, its control groups
to the right. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from testbed.topology.cgroups import Cgroup
from testbed.topology.disks import Disk
from testbed.topology.graph import Key, NamespaceOf, Node, PartitionOf, build_graph, sizes
from testbed.topology.model import Topology
from testbed.topology.storage import Dm, File, Filesystem, Loop, Md, Swap
from testbed.units import format_size

_BOX_W, _BOX_H, _GAP_X, _GAP_Y, _EDGE = 184, 46, 24, 30, 28
_HEAD = 52
_LETTER_W = 6.6  # average width of the widest letters of a detail
_COLOURS = {
    "disk": "#c6dbef",
    "partition": "#deebf7",
    "loop": "#fdd0a2",
    "mapped": "#dadaeb",
    "filesystem": "#c7e9c0",
    "file": "#edf8e9",
    "swap": "#fcbba1",
    "cgroup": "#f0f0f0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """A box with its place. `x`, `y`: of its upper left corner, in pixels of its guest's frame."""

    kind: str
    title: str
    detail: str
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A disk, loop device, filesystem or the like. `kind`: a key of `_COLOURS`; `on`: the keys of the boxes below
    it."""

    key: str
    kind: str
    title: str
    detail: str
    on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A control group. `limits`: the keys of the devices that it limits."""

    title: str
    detail: str
    limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A guest. `boxes`: each after those below it."""

    title: str
    about: str
    boxes: tuple[Box, ...]
    groups: tuple[Group, ...] = ()


def svg(topology: Topology) -> str:
    """Draw a topology, its guests below each other."""
    frames = tuple(_frame(name, topology) for name in topology.guests)
    return draw(frames, f"Topology of {', '.join(topology.guests)}")


def draw(frames: tuple[Frame, ...], title: str) -> str:
    """Draw frames below each other."""
    lines: list[str] = []
    top, width = 0.0, 0.0
    for frame in frames:
        boxes, edges, frame_w, frame_h = _laid_out(frame)
        frame_w = max(frame_w, 2 * _EDGE + _LETTER_W * len(frame.about))
        lines.append(f'<g transform="translate({_EDGE / 2:.0f},{top + _EDGE / 2:.0f})">')
        lines.append(f'<rect class="frame" width="{frame_w:.0f}" height="{frame_h:.0f}" rx="8"/>')
        lines.append(f'<text class="head" x="{_EDGE}" y="22">{escape(frame.title)}</text>')
        lines.append(f'<text class="detail" x="{_EDGE}" y="40">{escape(frame.about)}</text>')
        lines += edges
        lines += [line for box in boxes for line in _box(box)]
        lines.append("</g>")
        top += frame_h + _EDGE / 2
        width = max(width, frame_w)
    height = top + _EDGE / 2
    size = f'width="{width + _EDGE:.0f}" height="{height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + _EDGE:.0f} {height:.0f}" {size} role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n" + "\n".join(lines) + "\n</svg>\n"
    )


def _frame(name: str, topology: Topology) -> Frame:
    guest = topology.guests[name]
    ends = [f"on {link.network} as {link.address}" for link in topology.links[name]]
    cpus = f"{guest.cpus} CPU{'s' if guest.cpus > 1 else ''}"
    made = build_graph(guest)
    order = made.ordered()
    known = sizes(made, order)
    return Frame(
        title=name,
        about=", ".join(
            word for word in (guest.kernel or "", cpus, f"{format_size(guest.memory)} memory", *ends) if word
        ),
        boxes=tuple(
            Box(
                key=str(key),
                on=tuple(str(below) for below, _ in made.nodes[key].needs),
                **_words(made.nodes[key], known.get(key)),
            )
            for key in order
        ),
        groups=tuple(_group(path, group) for path, group in guest.cgroups.items()),
    )


def _group(path: str, group: Cgroup) -> Group:
    limited = {*group.io_max, *group.io_latency, *group.io_cost_model, *group.io_cost_qos}
    limited |= set(group.io_weight) - {"default"} if isinstance(group.io_weight, dict) else set()
    detail = ", ".join(sorted(name.replace("_", ".") for name in group.model_fields_set))
    return Group(title=path, detail=detail, limits=tuple(str(Key("device", name)) for name in sorted(limited)))


_STYLE = (
    "text{font:13px sans-serif;fill:#222}.detail{font-size:11px;fill:#555}.head{font-weight:bold}"
    ".frame{fill:#fff;stroke:#888}"
    ".edge{stroke:#666;fill:none}.limit{stroke:#a33;fill:none;stroke-dasharray:4 3}.box{stroke:#555}"
)


def _box(box: _Box) -> Iterator[str]:
    place = f'x="{box.x:.0f}" y="{box.y:.0f}" width="{_BOX_W}" height="{_BOX_H}"'
    yield f'<rect class="box" {place} rx="4" fill="{_COLOURS[box.kind]}"/>'
    yield f'<text x="{box.x + 8:.0f}" y="{box.y + 19:.0f}">{escape(_short(box.title, 22))}</text>'
    yield f'<text class="detail" x="{box.x + 8:.0f}" y="{box.y + 36:.0f}">{escape(_short(box.detail, 25))}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _laid_out(frame: Frame) -> tuple[list[_Box], list[str], float, float]:
    """Place a frame's boxes and edges; return them with the frame's width and height."""
    levels: dict[str, int] = {}
    for thing in frame.boxes:
        levels[thing.key] = max((levels[below] + 1 for below in thing.on), default=0)
    rows = max([*levels.values(), len({group.title.count("/") for group in frame.groups}) - 1, 0]) + 1
    places = _columns(frame.boxes, levels)
    left = (max(places.values(), default=-1) + 1) * (_BOX_W + _GAP_X) + (_GAP_X if frame.groups else 0)
    boxes: dict[str, _Box] = {}
    for thing in frame.boxes:
        x, y = _EDGE + places[thing.key] * (_BOX_W + _GAP_X), _HEAD + (rows - 1 - levels[thing.key]) * (_BOX_H + _GAP_Y)
        boxes[thing.key] = _Box(kind=thing.kind, title=thing.title, detail=thing.detail, x=x, y=y)
    edges = [_edge(boxes[below], boxes[thing.key], "edge") for thing in frame.boxes for below in thing.on]
    groups: list[_Box] = []
    for number, group in enumerate(frame.groups):
        box = _Box(
            kind="cgroup",
            title=group.title,
            detail=group.detail,
            x=_EDGE + left,
            y=_HEAD + number * (_BOX_H + _GAP_Y / 2),
        )
        groups.append(box)
        edges += [_limit(box, boxes[key]) for key in group.limits if key in boxes]
    width = _EDGE * 2 + left + (_BOX_W if groups else -_GAP_X)
    height = _HEAD + max(rows * (_BOX_H + _GAP_Y) if boxes else 0, len(groups) * (_BOX_H + _GAP_Y / 2))
    return [*boxes.values(), *groups], edges, max(width, 320), height


def _columns(things: tuple[Box, ...], levels: dict[str, int]) -> dict[str, int]:
    """Choose a column for each box: above the leftmost box below it, or the next free column of its row."""
    taken: dict[int, set[int]] = {}
    columns: dict[str, int] = {}
    for thing in things:
        row = taken.setdefault(levels[thing.key], set())
        column = min((columns[below] for below in thing.on), default=0)
        while column in row:
            column += 1
        row.add(column)
        columns[thing.key] = column
    return columns


def _edge(below: _Box, above: _Box, kind: str) -> str:
    x1, y1, x2, y2 = below.x + _BOX_W / 2, below.y, above.x + _BOX_W / 2, above.y + _BOX_H
    middle = (y1 + y2) / 2
    return (
        f'<path class="{kind}" d="M{x1:.0f},{y1:.0f} C{x1:.0f},{middle:.0f} {x2:.0f},{middle:.0f} {x2:.0f},{y2:.0f}"/>'
    )


def _limit(group: _Box, device: _Box) -> str:
    x1, y1, x2, y2 = group.x, group.y + _BOX_H / 2, device.x + _BOX_W, device.y + _BOX_H / 2
    return (
        f'<path class="limit" d="M{x1:.0f},{y1:.0f} C{x1 - 40:.0f},{y1:.0f} {x2 + 40:.0f},{y2:.0f} {x2:.0f},{y2:.0f}"/>'
    )


def _words(node: Node, size_bytes: int | None) -> dict[str, str]:
    """Return the kind, title and detail of a node."""
    size = format_size(size_bytes) if size_bytes is not None else ""
    name = node.key.name
    match node.model:
        case Disk() as disk:
            speed = disk.profile or (
                "throttled" if disk.throttle else f"group {disk.throttle_group}" if disk.throttle_group else ""
            )
            return {"kind": "disk", "title": name, "detail": " ".join(filter(None, (disk.type, size, speed)))}
        case NamespaceOf(disk=disk_name, number=number):
            return {"kind": "disk", "title": name, "detail": f"namespace {number} of {disk_name} {size}"}
        case PartitionOf(number=number):
            return {"kind": "partition", "title": name, "detail": f"partition {number} {size}"}
        case Filesystem(type=kind):
            return {"kind": "filesystem", "title": f"/mnt/{name}", "detail": kind}
        case File(path=path, allocate=allocate):
            return {"kind": "file", "title": path, "detail": f"file {size}, {allocate}"}
        case Loop() as loop:
            flags = [flag for flag, on in (("direct-io", loop.direct_io), ("read-only", loop.read_only)) if on]
            return {"kind": "loop", "title": name, "detail": " ".join(("loop", size, *flags))}
        case Dm(type=kind):
            return {"kind": "mapped", "title": name, "detail": f"dm-{kind} {size}"}
        case Md(level=level):
            return {"kind": "mapped", "title": name, "detail": f"md {level} {size}"}
        case Swap():
            return {"kind": "swap", "title": name, "detail": "swap"}
