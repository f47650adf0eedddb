"""Expands a matrix into its points: the value of each axis, and the file with these values filled in. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from testbed.topology.base import KeyPath
from testbed.topology.model import Matrix, Scalar

MAX_POINTS = 100_000
_PLACEHOLDER = re.compile(r"\$\$\{|\$\{([a-z][a-z0-9-]*)\}")


def matrix_points(matrix: Matrix) -> dict[str, dict[str, Scalar]]:
    """Return the values of each point by its name, such as `disk=nvme,filesystem=ext4`; included points come last."""
    found: dict[str, dict[str, Scalar]] = {}
    for values in itertools.product(*matrix.axes.values()):
        point = dict(zip(matrix.axes, values, strict=True))
        if not any(
            all(point.get(axis, _NOTHING) == value for axis, value in entry.items()) for entry in matrix.exclude
        ):
            found[_name(point)] = point
    for entry in matrix.include:
        point = {axis: entry[axis] for axis in matrix.axes if axis in entry}
        found.setdefault(_name(point), point)
    return found


_NOTHING = object()


def _name(point: Mapping[str, Scalar]) -> str:
    return ",".join(f"{axis}={_format(value)}" for axis, value in point.items())


def _format(value: Scalar) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def matrix_mistakes(matrix: Matrix) -> Iterator[tuple[KeyPath, str]]:
    """List mistakes in a matrix: unknown axes and values, repeated values, and too many points."""
    count = 1
    for axis, values in matrix.axes.items():
        count *= len(values)
        if len(set(map(repr, values))) < len(values):
            yield ("axes", axis), "expected each value once"
    if count > MAX_POINTS:
        yield ("axes",), f"expected at most {MAX_POINTS} points, got {count}"
    for section, entries in (("exclude", matrix.exclude), ("include", matrix.include)):
        for number, entry in enumerate(entries):
            yield from (
                ((section, number, axis), f"expected one of the axes {', '.join(matrix.axes)}")
                for axis in entry
                if axis not in matrix.axes
            )
            if section == "exclude":
                # A value that no point has would silently exclude nothing.
                yield from (
                    (
                        (section, number, axis),
                        f"expected one of {', '.join(map(_format, matrix.axes[axis]))}, got {_format(value)}",
                    )
                    for axis, value in entry.items()
                    if axis in matrix.axes and value not in matrix.axes[axis]
                )
            missing = [axis for axis in matrix.axes if axis not in entry]
            if section == "include" and missing:
                yield (section, number), f"expected a value for each axis, got none for {', '.join(missing)}"


def placeholders(plain: Any, where: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """List the places in a file that name an axis, each with the axis."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from placeholders(value, (*where, key))
    elif isinstance(plain, list):
        for number, value in enumerate(plain):
            yield from placeholders(value, (*where, number))
    elif isinstance(plain, str) and "${" in plain:
        yield from ((where, found) for found in _PLACEHOLDER.findall(plain) if found)


Filler = Callable[[Mapping[str, Scalar]], Any]


def make_filler(plain: Any) -> Filler | None:
    """Return a function that fills in the values of a point, or None if nothing in `plain` depends on the point.

    All points share the parts that depend on none.
    """
    if isinstance(plain, dict):
        changing = {key: made for key, value in plain.items() if (made := make_filler(value)) is not None}
        return (lambda point: plain | {key: made(point) for key, made in changing.items()}) if changing else None
    if isinstance(plain, list):
        items = [make_filler(value) for value in plain]
        if not any(items):
            return None
        return lambda point: [
            item(point) if item is not None else value for item, value in zip(items, plain, strict=True)
        ]
    if not isinstance(plain, str) or "${" not in plain:
        return None
    whole = _PLACEHOLDER.fullmatch(plain)
    if whole and whole[1]:
        axis = whole[1]
        return lambda point: point.get(axis)
    return lambda point: _PLACEHOLDER.sub(lambda match: str(point.get(match[1], "")) if match[1] else "${", plain)
