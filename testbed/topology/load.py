"""Loads topology files: follows `extends`, expands the matrix, and reports all mistakes at once with their places."""

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
    """Load the topology in a file, or the one at a point of its matrix.

    :raise TopologyError: the file cannot be read, or has mistakes, all of which the error lists; or it has a matrix of
        several points and `point` is None.
    """
    return select_point(load_points(path, limits=limits, check_kernels=check_kernels), str(path), point)


def load_points(
    path: Path, *, limits: HostLimits | None = None, check_kernels: KernelCheck | None = None
) -> dict[str, Topology]:
    """Load all points of a file's matrix, by name; a file without a matrix has one point, whose name is empty.

    `limits`: what the host offers, where the guests are to run on it. `check_kernels`: lists what their kernels do not
    support.

    :raise TopologyError: as above.
    """
    return _points(read_file(path), str(path), path, limits, check_kernels)


def parse_points(text: str, file: str, folder: Path, *, limits: HostLimits | None = None) -> dict[str, Topology]:
    """Load all points of a text that is in no file of its own.

    `file`: its name in messages; `folder`: the folder that paths in it are relative to.

    :raise TopologyError: as above.
    """
    return _points(text, file, folder / "inline.yaml", limits)


def _with_absolute_images(topology: Topology, folder: Path) -> Topology:
    """Make the paths of disk images absolute: they are relative to `folder`, and a supervisor has another one."""
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


def _with_trust(topology: Topology, reader: Reader) -> Topology:
    """Mark the `qemu-args` of each guest as trusted if all files are that were read for the topology."""
    marked = {
        name: guest.model_copy(update={"qemu_args": trust.with_trust(guest.qemu_args, reader.sources)})
        for name, guest in topology.guests.items()
        if guest.qemu_args
    }
    return topology.model_copy(update={"guests": {**topology.guests, **marked}}) if marked else topology


def parse(text: str, file: str) -> Topology:
    """Parse the topology in a text, which cannot extend a file. `file`: its name in messages.

    :raise TopologyError: the text has mistakes; lists them all.
    """
    return select_point(_points(text, file, None), file, None)


def select_point(found: dict[str, Topology], file: str, point: str | None) -> Topology:
    """Return the only topology, or the one at a point of the matrix.

    :raise TopologyError: there is no such point; or there are several, and `point` is None.
    """
    if point is None and len(found) == 1:
        return next(iter(found.values()))
    if point is None:
        raise single_error(
            file,
            1,
            1,
            f"expected one topology, got a matrix of {len(found)} points; "
            f"name one of them, such as {next(iter(found))}",
        )
    if list(found) == [""]:
        raise single_error(file, 1, 1, f"expected no point, because this file has no matrix, got {point!r}")
    if point not in found:
        raise single_error(
            file,
            1,
            1,
            f"expected a point of the matrix, got {point!r}"
            + did_you_mean(point, [name for name in found if name][:20]),
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
    """Build the topologies from a mapping that `reader` has read from the file `path`, or from a part of it.

    Without a path the mapping cannot extend a file.

    :raise TopologyError: as `load_points`.
    """
    whole = _merge_base(dict(plain), reader, path)
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
    """Merge the mapping of a topology into that of the file which it extends, relative to `path`.

    :raise TopologyError: the extended file cannot be read.
    """
    found = _merge_base(dict(plain), reader, path)
    if reader.problems:
        raise TopologyError(tuple(reader.problems))
    return found


def _merge_base(plain: dict[str, Any], reader: Reader, path: Path | None, depth: int = 1) -> dict[str, Any]:
    """Merge a mapping into that of the file which it extends.

    :raise TopologyError: the extended file cannot be read, or is no valid name.
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
        lower = _merge_base(
            read_mapping(read_referenced_file(path.parent / base), below), below, path.parent / base, depth + 1
        )
    except TopologyError as error:
        # Its keys are missing here, too; that must not be reported as more mistakes.
        refused = reader.fatal_error(("extends",), f"expected a topology, got {base}, in which something is wrong")
        raise TopologyError((*refused.problems, *error.problems)) from error
    reader.problems += below.problems
    reader.positions = {**below.positions, **reader.positions}
    reader.key_positions = {**below.key_positions, **reader.key_positions}
    return _merge(lower, plain)


def _merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings: mappings in them are merged, other values replaced, and null removes a key."""
    merged = dict(lower)
    for key, value in upper.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(lower.get(key), dict):
            merged[key] = _merge(lower[key], value)
        else:
            merged[key] = value
    return merged


def _mistakes(topology: Topology, limits: HostLimits | None, check_kernels: KernelCheck | None) -> Iterator[Mistake]:
    """List the parts of a topology that do not fit each other, the host, or the kernels."""
    yield from topology_mistakes(topology)
    if limits is not None:
        yield from host_mistakes(topology, limits)
    if check_kernels is not None:
        yield from check_kernels(topology)


def _expand(
    plain: dict[str, Any], reader: Reader, list_mistakes: KernelCheck, path: Path | None
) -> dict[str, Topology]:
    axes = plain.pop("matrix", None)
    points: dict[str, dict[str, Any]] = {"": {}}
    known: tuple[str, ...] = ()
    if axes is not None:
        try:
            declared = Matrix.model_validate(axes)
        except ValidationError as invalid:
            for error in invalid.errors():
                where = ("matrix", *messages.error_place(error, axes))
                reader.add_problem(
                    where, messages.format_error(error, where, {"matrix": axes}), reader.key_positions.get(where)
                )
            return {}
        known = tuple(declared.axes)
        wrong = list(matrix.matrix_mistakes(declared))
        for where, message in wrong:
            reader.add_problem(("matrix", *where), message)
        if wrong:
            return {}
        points = matrix.matrix_points(declared)
        if not points:
            reader.add_problem(("matrix",), "expected a point at least, all are excluded")
    missing = [(where, axis) for where, axis in matrix.placeholders(plain) if axis not in known]
    for where, axis in missing:
        reader.add_problem(where, f"expected an axis of the matrix, got ${{{axis}}}{did_you_mean(axis, known)}")
    # The rest is checked without the entries that they are in.
    for where, _ in sorted(missing, key=lambda item: [str(part).zfill(9) for part in item[0]], reverse=True):
        remove_at(plain, where[:4])
    return _validated(plain, points, reader, list_mistakes, path)


def _validated(
    plain: dict[str, Any],
    points: dict[str, dict[str, Any]],
    reader: Reader,
    list_mistakes: KernelCheck,
    path: Path | None,
) -> dict[str, Topology]:
    """Build a topology for each point; a mistake of several points is reported once.

    `list_mistakes`: finds the mistakes in a topology whose models are valid.
    """
    topologies: dict[str, Topology] = {}
    occurrences: dict[tuple[KeyPath, str, bool], list[str]] = {}
    fill = matrix.make_filler(plain)
    for name, point in points.items():
        filled = fill(point) if fill is not None else plain
        checked = TolerantValidation(Topology, filled, Document)
        for failure in checked.failures:
            occurrences.setdefault((failure.where, failure.message, failure.at_key), []).append(name)
        topology = checked.value
        if topology is None:
            continue
        if path is not None:
            topology = _with_absolute_images(topology, path.parent)
        topology = _with_trust(topology, reader)
        topologies[name] = topology
        for where, message in list_mistakes(topology):
            # A reference to an entry that was left out is no mistake.
            if not any(f"{lost!r}" in message for lost in checked.lost):
                occurrences.setdefault((checked.original(where), message, False), []).append(name)
    reported = {problem.path for problem in reader.problems}
    for (where, message, at_key), names in occurrences.items():
        if reader.path(where) in reported:
            continue
        if len(names) < len(points):
            message += f" (at {names[0]}{f' and {len(names) - 1} more points' if len(names) > 1 else ''})"
        reader.add_problem(where, message, reader.key_positions.get(where) if at_key else None)
    return topologies
