"""Accepts a topology in any form: the path of a file, YAML text, a mapping, or a parsed Topology."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from testbed.errors import UsageError
from testbed.topology import Topology, load_points, parse_points
from testbed.topology.host_limits import HostLimits

# The default: a guest with two CPUs, 1G of memory, and no disks.
PLAIN: Mapping[str, Any] = {"guests": {"g0": {}}}
Wanted = Topology | Path | str | Mapping[str, Any]


def resolve_points(wanted: Wanted, folder: Path, where: str) -> dict[str, Topology]:
    """Return each point of a topology by its name, as `load_points` does. A string of several lines is YAML, any
    other is a path relative to `folder`. A mapping may lack `version: 1`. `where`: the name in messages of a
    topology that is in no file.

    :raise TopologyError: with every mistake. :raise UsageError: it has none of these forms.
    """
    match wanted:
        case Topology():
            return {"": wanted}
        case Mapping():
            try:
                text = yaml.safe_dump({"version": 1, **wanted}, sort_keys=False)
            except yaml.YAMLError as error:
                raise UsageError(f"{where}: expected what YAML can hold: {error}") from None
            return parse_points(text, where, folder, limits=HostLimits.of_this_host())
        case str() if "\n" in wanted:
            return parse_points(wanted, where, folder, limits=HostLimits.of_this_host())
        case str() | Path() if str(wanted):
            return load_points(folder / wanted, limits=HostLimits.of_this_host())
    raise UsageError(f"{where}: expected a topology: the path of a .yaml file, YAML, or a mapping; got {wanted!r}")


def resolve_point(wanted: Wanted, folder: Path, where: str, name: str | None) -> Topology:
    """Return the only topology, or that at a point of its matrix. Raises as `resolve_points`, too.

    :raise UsageError: there are several points, or none of that name.
    """
    found = resolve_points(wanted, folder, where)
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    some = ", ".join(list(found)[:4])
    if name is None:
        raise UsageError(
            f"{where}: expected one topology, got a matrix of {len(found)} points; choose one with point=,"
            f" such as {some}"
        )
    if name not in found:
        raise UsageError(f"{where}: expected a point of the matrix, such as {some}; got {name!r}")
    return found[name]
