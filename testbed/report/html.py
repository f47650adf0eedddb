"""Makes a run's `report.html`: one file that needs no other, with plots of the samples taken while the scenarios ran.

The template escapes all text. The data of the plots and the library that draws them are compressed and in base64, in
which nothing can end a script; the page unpacks the library when the first plot comes into view. The page's policy
allows exactly its own two scripts, and fetches nothing.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import importlib.util
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from pydantic import ValidationError

from testbed.errors import HostError
from testbed.host import untrusted_files
from testbed.report import plots, stack_svg, topology_svg, wording
from testbed.report.plots import Plot, Recording
from testbed.report.schema import Balance, Case, Document, Line, Side
from testbed.report.stack_model import Stack
from testbed.report.stack_svg import group_by_stack
from testbed.report.wording import ControlRow, MeasureRow
from testbed.topology.model import Topology
from testbed.topology.unused import without_unused

_PAGE = Path(__file__).parent / "page"
# Points of a line: enough for the eye in a report of few scenarios; in one of many, all lines take a few megabytes.
_MOST_POINTS, _LEAST_POINTS, _ALL_POINTS = 400, 20, 20_000
# Up to so many cases are shown open; a reader would have to scroll through more.
_OPEN_CASES = 6
LOGS = (
    "console.log",
    "output.txt",
    "dmesg.txt",
    "counters.txt",
    "ssh.log",
    "qmp.jsonl",
    "stages.jsonl",
    "timeline.jsonl",
    "samples.jsonl",
    "cgroups.jsonl",
    "argv.txt",
    "traceback.txt",
)
# Kernel log lines that are shown, for each kernel and in all; dmesg.txt has all of them.
_MOST_LINES, _LEAST_LINES, _ALL_LINES = 40, 5, 10_000
# In a report of more cases the others have a link to their folder, and not to every log in it.
_LINKED_CASES = 200
# The stacks of the first cases are drawn, and those of the others described in words: a picture takes 5 kB.
_DRAWN_CASES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """A case on the page. `log`: kernel log lines, each with its kernel and its time in the plots; `files`: names and
    paths of log files, by kernel; `plots`: compressed JSON."""

    id: str
    case: Case
    by_side: list[tuple[str, Side]]
    measures: list[MeasureRow]
    controls: list[ControlRow]
    balances: list[tuple[str, Balance, bool]]
    stacks: list[_StackFigure]
    log: list[tuple[str, Line, float | None]]
    log_left_out: int
    files: list[tuple[str, list[tuple[str, str]]]]
    plot_count: int
    plots: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _StackFigure:
    """The stack on some kernels (`where`); `data`: its image, "" if it is not drawn."""

    where: str
    data: str
    caption: str


def html(document: Document, folder: Path) -> str:
    """Return the whole page; `folder` is the run's.

    :raise HostError: the plotting library is not installed.
    """
    sides = list(document.kernels)
    cases = document.scenarios
    points = max(_LEAST_POINTS, min(_MOST_POINTS, _ALL_POINTS // max(1, len(cases))))
    script, library = (_PAGE / "report.js").read_text(encoding="utf-8"), _library()
    lines = max(_LEAST_LINES, min(_MOST_LINES, _ALL_LINES // (max(1, len(cases)) * len(sides))))
    items = [_item(number, case, sides, folder, points, lines) for number, case in enumerate(cases)]
    template = environment().get_template("report.html.j2")
    return template.render(
        document=document,
        sides=sides,
        alone=wording.is_judged_alone(document),
        items=items,
        open_all=len(cases) <= _OPEN_CASES,
        title=wording.title(document),
        summary=wording.summary(document),
        counts=wording.counts(document),
        balances=wording.balances(document),
        command=shlex.join(["./tb", *document.command[1:]]),
        picture=_picture(document),
        style=style(),
        script=script,
        library=library.packed,
        policy=f"default-src 'none'; script-src {_hash(script)} {library.hash}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
    )


def _item(number: int, case: Case, sides: list[str], folder: Path, points: int, lines: int) -> _Item:
    recorded = {side: plots.read_recording(folder, case.sides[side].evidence, points) for side in sides}
    drawn = list(_plots(recorded))
    return _Item(
        id=f"case-{number}",
        case=case,
        by_side=[(side, case.sides[side]) for side in sides],
        measures=wording.measures(case, sides),
        controls=wording.controls(case, sides),
        balances=wording.balance_rows(case, sides),
        stacks=[
            _stack(kernels, stack, drawn=number < _DRAWN_CASES, all_sides=len(kernels) == len(sides))
            for kernels, stack in group_by_stack(case, sides)
        ],
        log=[line for side in sides for line in _log(side, case.sides[side], recorded[side], lines)],
        log_left_out=sum(max(0, len(case.sides[side].console) - lines) for side in sides),
        files=[(side, log_links(folder, case.sides[side].evidence, all_logs=number < _LINKED_CASES)) for side in sides],
        plot_count=len(drawn),
        plots=_packed(json.dumps(drawn, separators=(",", ":"))) if drawn else "",
    )


def log_links(folder: Path, evidence: str, *, all_logs: bool) -> list[tuple[str, str]]:
    """Return the names of a guest's logs and their paths relative to the page, or only their folder. Leaves out links,
    and paths outside of the run's folder."""
    if not all_logs:
        return [("its folder", evidence)] if untrusted_files.is_folder_below(folder, evidence) else []
    return [(log, f"{evidence}/{log}") for log in LOGS if untrusted_files.is_file_below(folder, f"{evidence}/{log}")]


def _plots(recorded: dict[str, Recording]) -> Iterator[dict[str, Any]]:
    """Make one plot for each quantity, with all kernels, as the page's script reads it; `most` is the end of their
    common scale."""
    titles = dict.fromkeys((plot.title, plot.unit) for recording in recorded.values() for plot in recording.plots)
    for title, unit in titles:
        nothing = Plot(title=title, unit=unit, x=[], lines=[], left_out=0)
        drawn = {
            side: next((plot for plot in recording.plots if plot.title == title), nothing)
            for side, recording in recorded.items()
        }
        sides = [
            {
                "side": side,
                "x": plot.x,
                "lines": [asdict(line) for line in plot.lines],
                "left_out": plot.left_out,
                "marks": recorded[side].marks,
                "kills": [list(kill) for kill in recorded[side].kills] if "memory" in title else [],
            }
            for side, plot in drawn.items()
        ]
        tops = [value for plot in drawn.values() for line in plot.lines for value in line.y if value is not None]
        ends = [x for plot in drawn.values() for x in plot.x[-1:]]
        yield {"title": title, "unit": unit, "sides": sides, "most": max(tops, default=0), "end": max(ends, default=0)}


def _log(name: str, side: Side, recorded: Recording, lines: int) -> Iterator[tuple[str, Line, float | None]]:
    # Where not all lines fit, unexpected ones come first.
    chosen = sorted(range(len(side.console)), key=lambda number: side.console[number].expected)[:lines]
    for line in (side.console[number] for number in sorted(chosen)):
        at, begin = line.seconds, recorded.begin_s
        yield name, line, at - begin if at is not None and begin is not None else None


def _stack(sides: list[str], stack: Stack | str, *, drawn: bool, all_sides: bool) -> _StackFigure:
    """Draw and describe the stack on these kernels; without an image where the stack is not known."""
    where = "on each kernel" if all_sides and len(sides) > 1 else f"on {', '.join(sides)}"
    what = f"The stack {where} while the claim was measured"
    if isinstance(stack, str):
        return _StackFigure(where=where, data="", caption=f"{what} is not known: {stack}")
    data = _image(stack_svg.svg(stack, where)) if drawn else ""
    caption = f"{what}, read back from the guest: {stack_svg.describe_stack(stack)}."
    return _StackFigure(where=where, data=data, caption=caption)


def _image(svg: str) -> str:
    """Return an image as a URL; the browser runs no script in it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _picture(document: Document) -> dict[str, str] | None:
    """Draw and describe the part of the topology that the run used."""
    try:
        topology = Topology.model_validate(document.topology) if document.topology else None
    except ValidationError:
        topology = None
    if topology is None:
        return None
    # Earlier testbeds recorded the whole file.
    used = topology.model_copy(
        update={"guests": {name: without_unused(guest) for name, guest in topology.guests.items()}}
    )
    return {"data": _image(topology_svg.svg(used)), "words": wording.describe_topology(used)}


class _Library:
    """plotly.js as a page contains it. Plotly's Python package ships it; importing that package would take a second."""

    def __init__(self, source: bytes) -> None:
        self.packed = _packed_bytes(source)
        self.hash = _hash(source.decode())


@functools.cache
def _library() -> _Library:
    spec = importlib.util.find_spec("plotly")
    file = Path(spec.origin).parent / "package_data" / "plotly.min.js" if spec is not None and spec.origin else None
    try:
        if file is None:
            raise FileNotFoundError(2, "plotly is not installed")
        return _Library(file.read_bytes())
    except OSError as error:
        raise HostError(
            f"{file or 'plotly'}: cannot be read: {error.strerror}; install the testbed's Python packages again"
        ) from error


def _packed(text: str) -> str:
    return _packed_bytes(text.encode())


def _packed_bytes(data: bytes) -> str:
    # The same bytes each time: no time of day in the header.
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _hash(script: str) -> str:
    """Return the source of an inline script in a Content-Security-Policy. The browser hashes the parsed script, which
    has no carriage returns."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.replace(chr(13), '').encode()).digest()).decode()}'"


def style() -> str:
    """Return the style sheet of all pages."""
    return (_PAGE / "report.css").read_text(encoding="utf-8")


@functools.cache
def environment() -> jinja2.Environment:
    """Return the template environment of all pages: all values are escaped, and an undefined one is an error."""
    loader = jinja2.FileSystemLoader(_PAGE)
    templates = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    templates.filters |= {"seconds": wording.seconds, "first_line": wording.first_line, "claim": wording.claim}
    return templates
