"""A topology as an SVG picture: each guest's disks at the bottom, what stands on them above, its control groups beside. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from testbed.topology.disks import Disk
from testbed.topology.graph import Graph, Key, NamespaceOf, Node, PartitionOf, graph, sizes
from testbed.topology.model import Guest, Topology
from testbed.topology.stacks import Dm, File, Filesystem, Loop, Md, Swap
from testbed.units import format_size

_BOX_W, _BOX_H, _GAP_X, _GAP_Y, _EDGE = 184, 46, 24, 30, 28
_HEAD = 52
_LETTER_W = 6.6  # of the widest letters of a detail, on average
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
    """A thing where it is drawn; `x`, `y` of its upper left corner, in pixels of its guest's frame."""

    kind: str
    title: str
    detail: str
    x: float
    y: float


def svg(topology: Topology) -> str:
    """The whole picture, guests below each other."""
    drawn: list[str] = []
    top, width = 0.0, 0.0
    for name, guest in topology.guests.items():
        ends = [f"on {link.network} as {link.address}" for link in topology.links[name]]
        cpus = f"{guest.cpus} CPU{'s' if guest.cpus > 1 else ''}"
        about = ", ".join(word for word in (guest.kernel or "", cpus, f"{format_size(guest.memory)} memory", *ends) if word)
        boxes, edges, frame_w, frame_h = _laid_out(guest)
        frame_w = max(frame_w, 2 * _EDGE + _LETTER_W * len(about))
        drawn.append(f'<g transform="translate({_EDGE / 2:.0f},{top + _EDGE / 2:.0f})">')
        drawn.append(f'<rect class="frame" width="{frame_w:.0f}" height="{frame_h:.0f}" rx="8"/>')
        drawn.append(f'<text class="head" x="{_EDGE}" y="22">{escape(name)}</text>')
        drawn.append(f'<text class="detail" x="{_EDGE}" y="40">{escape(about)}</text>')
        drawn += edges
        drawn += [line for box in boxes for line in _box(box)]
        drawn.append("</g>")
        top += frame_h + _EDGE / 2
        width = max(width, frame_w)
    height = top + _EDGE / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + _EDGE:.0f} {height:.0f}" width="{width + _EDGE:.0f}" '
        f'height="{height:.0f}" role="img">\n<title>Topology of {escape(", ".join(topology.guests))}</title>\n<style>{_STYLE}</style>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


_STYLE = (
    "text{font:13px sans-serif;fill:#222}.detail{font-size:11px;fill:#555}.head{font-weight:bold}.frame{fill:#fff;stroke:#888}"
    ".edge{stroke:#666;fill:none}.limit{stroke:#a33;fill:none;stroke-dasharray:4 3}.box{stroke:#555}"
)


def _box(box: _Box) -> Iterator[str]:
    yield f'<rect class="box" x="{box.x:.0f}" y="{box.y:.0f}" width="{_BOX_W}" height="{_BOX_H}" rx="4" fill="{_COLOURS[box.kind]}"/>'
    yield f'<text x="{box.x + 8:.0f}" y="{box.y + 19:.0f}">{escape(_short(box.title, 22))}</text>'
    yield f'<text class="detail" x="{box.x + 8:.0f}" y="{box.y + 36:.0f}">{escape(_short(box.detail, 27))}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _laid_out(guest: Guest) -> tuple[list[_Box], list[str], float, float]:
    """A guest's boxes and edges, and how large its frame must be."""
    made = graph(guest)
    order = made.ordered()
    levels: dict[Key, int] = {}
    for key in order:
        levels[key] = max((levels[needed] + 1 for needed, _ in made.nodes[key].needs), default=0)
    rows = max([*levels.values(), len({path.count("/") for path in guest.cgroups}) - 1, 0]) + 1
    places = _columns(made, order, levels)
    left = (max(places.values(), default=-1) + 1) * (_BOX_W + _GAP_X) + (_GAP_X if guest.cgroups else 0)

    def at(column: float, level: int) -> tuple[float, float]:
        return _EDGE + column * (_BOX_W + _GAP_X), _HEAD + (rows - 1 - level) * (_BOX_H + _GAP_Y)

    known = sizes(made, order)
    boxes: dict[Key, _Box] = {}
    for key in order:
        x, y = at(places[key], levels[key])
        boxes[key] = _Box(**_words(made.nodes[key], known.get(key)), x=x, y=y)
    edges = [_edge(boxes[needed], boxes[key], "edge") for key in order for needed, _ in made.nodes[key].needs]
    groups: list[_Box] = []
    for number, (path, group) in enumerate(guest.cgroups.items()):
        said = sorted(field.replace("_", ".") for field in group.model_fields_set)
        box = _Box(kind="cgroup", title=path, detail=", ".join(said), x=_EDGE + left, y=_HEAD + number * (_BOX_H + _GAP_Y / 2))
        groups.append(box)
        limited = {*group.io_max, *group.io_latency, *group.io_cost_model, *group.io_cost_qos}
        limited |= set(group.io_weight) - {"default"} if isinstance(group.io_weight, dict) else set()
        edges += [_limit(box, boxes[Key("device", name)]) for name in sorted(limited) if Key("device", name) in boxes]
    width = _EDGE * 2 + left + (_BOX_W if groups else -_GAP_X)
    height = _HEAD + max(rows * (_BOX_H + _GAP_Y) if boxes else 0, len(groups) * (_BOX_H + _GAP_Y / 2))
    return [*boxes.values(), *groups], edges, max(width, 320), height


def _columns(made: Graph, order: tuple[Key, ...], levels: dict[Key, int]) -> dict[Key, int]:
    """A column for each: over the first thing that it stands on, or the next free one of its row."""
    taken: dict[int, set[int]] = {}
    found: dict[Key, int] = {}
    for key in order:
        row = taken.setdefault(levels[key], set())
        column = min((found[needed] for needed, _ in made.nodes[key].needs), default=0)
        while column in row:
            column += 1
        row.add(column)
        found[key] = column
    return found


def _edge(below: _Box, above: _Box, kind: str) -> str:
    x1, y1, x2, y2 = below.x + _BOX_W / 2, below.y, above.x + _BOX_W / 2, above.y + _BOX_H
    middle = (y1 + y2) / 2
    return f'<path class="{kind}" d="M{x1:.0f},{y1:.0f} C{x1:.0f},{middle:.0f} {x2:.0f},{middle:.0f} {x2:.0f},{y2:.0f}"/>'


def _limit(group: _Box, device: _Box) -> str:
    x1, y1, x2, y2 = group.x, group.y + _BOX_H / 2, device.x + _BOX_W, device.y + _BOX_H / 2
    return f'<path class="limit" d="M{x1:.0f},{y1:.0f} C{x1 - 40:.0f},{y1:.0f} {x2 + 40:.0f},{y2:.0f} {x2:.0f},{y2:.0f}"/>'


def _words(node: Node, size_bytes: int | None) -> dict[str, str]:
    """Kind, title and detail of a node."""
    size = format_size(size_bytes) if size_bytes is not None else ""
    name = node.key.name
    match node.thing:
        case Disk() as disk:
            speed = disk.profile or ("throttled" if disk.throttle else f"group {disk.throttle_group}" if disk.throttle_group else "")
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
