"""Topology files to `Topology` values: the file that one extends, the points of a matrix, and every mistake at once with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from testbed.errors import TopologyError
from testbed.topology import matrix, messages, trust
from testbed.topology.base import KeyPath
from testbed.topology.check import Mistake, did_you_mean, topology_mistakes
from testbed.topology.host_limits import HostLimits, host_mistakes
from testbed.topology.model import Document, GuestModel, Matrix, Topology
from testbed.topology.tolerant import TolerantValidation, remove_at
from testbed.topology.yaml_reader import Reader, read_file, read_mapping, read_referenced_file, single_error

_MAX_DEPTH = 8
# Lists the parts of a topology that its kernels do not support (`kernel_abilities.py`).
KernelCheck = Callable[[Topology], Iterable[Mistake]]


def load(
    path: Path, point: str | None = None, *, limits: HostLimits | None = None, check_kernels: KernelCheck | None = None
) -> Topology:
    """The topology in a file, or the one at a point of its matrix.

    :raise TopologyError: the file cannot be read, or says something wrong; holds every mistake. Also for a matrix without `point`.
    """
    return select_point(load_points(path, limits=limits, check_kernels=check_kernels), str(path), point)


def load_points(
    path: Path, *, limits: HostLimits | None = None, check_kernels: KernelCheck | None = None
) -> dict[str, Topology]:
    """Every point of a file's matrix by its name; without a matrix one, whose name is empty.

    `limits`: what the host offers, where the guests are to run on it. `check_kernels`: lists what their kernels do not support.

    :raise TopologyError: as above.
    """
    return _points(read_file(path), str(path), path, limits, check_kernels)


def parse_points(text: str, file: str, folder: Path, *, limits: HostLimits | None = None) -> dict[str, Topology]:
    """The same of a text that stands in no file of its own; `file` is how messages call it, and what it names is relative to `folder`.

    :raise TopologyError: as above.
    """
    return _points(text, file, folder / "inline.yaml", limits)


def _located(topology: Topology, folder: Path) -> Topology:
    """The topology with the images of its disks as paths from the root. The file names them relative to its `folder`; the supervisor of a
    guest that stays works elsewhere.
    """
    folder = folder.absolute()

    def disks(guest: GuestModel) -> dict[str, Any]:
        return {
            name: disk if disk.image is None else disk.model_copy(update={"image": str(folder / disk.image)})
            for name, disk in guest.disks.items()
        }

    if not any(disk.image for guest in topology.guests.values() for disk in guest.disks.values()):
        return topology
    guests = {name: guest.model_copy(update={"disks": disks(guest)}) for name, guest in topology.guests.items()}
    return topology.model_copy(update={"guests": guests})


def _judged(topology: Topology, reader: Reader) -> Topology:
    """The topology with each guest's `qemu-args` trusted or not, as all that was read for it is."""
    judged = {
        name: guest.model_copy(update={"qemu_args": trust.with_trust(guest.qemu_args, reader.sources)})
        for name, guest in topology.guests.items()
        if guest.qemu_args
    }
    return topology.model_copy(update={"guests": {**topology.guests, **judged}}) if judged else topology


def parse(text: str, file: str) -> Topology:
    """The topology in a text without a file: it extends nothing. `file` is how messages call it.

    :raise TopologyError: with every mistake.
    """
    return select_point(_points(text, file, None), file, None)


def select_point(found: dict[str, Topology], file: str, point: str | None) -> Topology:
    """The topology of a file that has one, or the one at a point of its matrix.

    :raise TopologyError: there is no such point, or several and none is named.
    """
    if point is None and len(found) == 1:
        return next(iter(found.values()))
    if point is None:
        raise single_error(
            file,
            1,
            1,
            f"expected one topology, got a matrix of {len(found)} points; name one of them, such as {next(iter(found))}",
        )
    if list(found) == [""]:
        raise single_error(file, 1, 1, f"expected no point, because this file has no matrix, got {point!r}")
    if point not in found:
        raise single_error(
            file,
            1,
            1,
            f"expected a point of the matrix, got {point!r}{did_you_mean(point, [name for name in found if name][:20])}",
        )
    return found[point]


def _points(
    text: str, file: str, path: Path | None, limits: HostLimits | None = None, check_kernels: KernelCheck | None = None
) -> dict[str, Topology]:
    reader = Reader(file)
    return points_from_mapping(read_mapping(text, reader), reader, path, limits, check_kernels)


def points_from_mapping(
    plain: dict[str, Any],
    reader: Reader,
    path: Path | None,
    limits: HostLimits | None = None,
    check_kernels: KernelCheck | None = None,
) -> dict[str, Topology]:
    """The topologies in a part of the file `path`, as `reader` has read it; without a path it extends nothing. Raises as `load_points`."""
    whole = _extended(dict(plain), reader, path)
    found = _expand(whole, reader, lambda topology: _mistakes(topology, limits, check_kernels), path)
    if reader.problems:
        raise TopologyError(
            tuple(
                sorted(
                    reader.problems,
                    key=lambda problem: (problem.file != reader.file, problem.file, problem.line, problem.column),
                )
            )
        )
    return found


def merge_extended(plain: dict[str, Any], reader: Reader, path: Path) -> dict[str, Any]:
    """A topology's mapping on top of the one of the file that it extends, which `path` is relative to.

    :raise TopologyError: that one cannot be read.
    """
    found = _extended(dict(plain), reader, path)
    if reader.problems:
        raise TopologyError(tuple(reader.problems))
    return found


def _extended(plain: dict[str, Any], reader: Reader, path: Path | None, depth: int = 1) -> dict[str, Any]:
    """The mapping on top of the one of the file that it extends.

    :raise TopologyError: there is none.
    """
    base = plain.pop("extends", None)
    if base is None:
        return plain
    if path is None or not isinstance(base, str) or Path(base).is_absolute() or not base.endswith(".yaml"):
        raise reader.fatal_error(("extends",), f"expected the path of a .yaml file, relative to this one, got {base!r}")
    if depth >= _MAX_DEPTH:
        raise reader.fatal_error(
            ("extends",), f"expected at most {_MAX_DEPTH} files on top of each other; does one extend itself?"
        )
    below = Reader(str(path.parent / base), reader.sources)
    try:
        lower = _extended(
            read_mapping(read_referenced_file(path.parent / base), below), below, path.parent / base, depth + 1
        )
    except TopologyError as error:
        # What it would have said is missing here, too, and that is no mistake of its own.
        refused = reader.fatal_error(("extends",), f"expected a topology, got {base}, in which something is wrong")
        raise TopologyError((*refused.problems, *error.problems)) from error
    reader.problems += below.problems
    reader.positions = {**below.positions, **reader.positions}
    reader.key_positions = {**below.key_positions, **reader.key_positions}
    return _on_top(lower, plain)


def _on_top(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced, and null takes a key away."""
    merged = dict(lower)
    for key, value in upper.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(lower.get(key), dict):
            merged[key] = _on_top(lower[key], value)
        else:
            merged[key] = value
    return merged


def _mistakes(topology: Topology, limits: HostLimits | None, check_kernels: KernelCheck | None) -> Iterator[Mistake]:
    """What of a topology does not fit together, to this host, or to its kernels."""
    yield from topology_mistakes(topology)
    if limits is not None:
        yield from host_mistakes(topology, limits)
    if check_kernels is not None:
        yield from check_kernels(topology)


def _expand(plain: dict[str, Any], reader: Reader, find: KernelCheck, path: Path | None) -> dict[str, Topology]:
    axes = plain.pop("matrix", None)
    chosen: dict[str, dict[str, Any]] = {"": {}}
    known: tuple[str, ...] = ()
    if axes is not None:
        try:
            wanted = Matrix.model_validate(axes)
        except ValidationError as invalid:
            for error in invalid.errors():
                where = ("matrix", *messages.error_place(error, axes))
                reader.add_problem(
                    where, messages.format_error(error, where, {"matrix": axes}), reader.key_positions.get(where)
                )
            return {}
        known = tuple(wanted.axes)
        wrong = list(matrix.matrix_mistakes(wanted))
        for where, said in wrong:
            reader.add_problem(("matrix", *where), said)
        if wrong:
            return {}
        chosen = matrix.matrix_points(wanted)
        if not chosen:
            reader.add_problem(("matrix",), "expected a point at least, all are excluded")
    missing = [(where, axis) for where, axis in matrix.placeholders(plain) if axis not in known]
    for where, axis in missing:
        reader.add_problem(where, f"expected an axis of the matrix, got ${{{axis}}}{did_you_mean(axis, known)}")
    # The rest is looked at without the parts that they stand in.
    for where, _ in sorted(missing, key=lambda one: [str(part).zfill(9) for part in one[0]], reverse=True):
        remove_at(plain, where[:4])
    return _validated(plain, chosen, reader, find, path)


def _validated(
    plain: dict[str, Any], chosen: dict[str, dict[str, Any]], reader: Reader, find: KernelCheck, path: Path | None
) -> dict[str, Topology]:
    """A topology for each point; a mistake that several points have is said once. `find`: mistakes that the shape of one does not show."""
    found: dict[str, Topology] = {}
    at: dict[tuple[KeyPath, str, bool], list[str]] = {}
    fill = matrix.make_filler(plain)
    for name, point in chosen.items():
        filled = fill(point) if fill is not None else plain
        checked = TolerantValidation(Topology, filled, Document)
        for failure in checked.failures:
            at.setdefault((failure.where, failure.message, failure.at_key), []).append(name)
        topology = checked.value
        if topology is None:
            continue
        if path is not None:
            topology = _located(topology, path.parent)
        topology = _judged(topology, reader)
        found[name] = topology
        for where, said in find(topology):
            # What a part that was left out is missed for is no mistake of its own.
            if not any(f"{gone!r}" in said for gone in checked.lost):
                at.setdefault((checked.original(where), said, False), []).append(name)
    spoken = {problem.path for problem in reader.problems}
    for (where, said, at_key), names in at.items():
        if reader.path(where) in spoken:
            continue
        if len(names) < len(chosen):
            said += f" (at {names[0]}{f' and {len(names) - 1} more points' if len(names) > 1 else ''})"
        reader.add_problem(where, said, reader.key_positions.get(where) if at_key else None)
    return found
