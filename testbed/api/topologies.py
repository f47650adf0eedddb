"""What people give as a topology: a file, YAML, a mapping, or one that was read already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from testbed.errors import UsageError
from testbed.topology import Topology, load_points, parse_points
from testbed.topology.host_limits import HostLimits

# Where nothing is said: a guest with two CPUs and 1G of memory, and no disks.
PLAIN: Mapping[str, Any] = {"guests": {"g0": {}}}
Wanted = Topology | Path | str | Mapping[str, Any]


def resolve_points(wanted: Wanted, folder: Path, where: str) -> dict[str, Topology]:
    """Each point of a topology by its name, as `load_points` has it. A text of several lines is YAML, any other a path below `folder`.
    `version: 1` may be left out of a mapping. `where`: what messages call one that stands in no file.

    :raise TopologyError: with every mistake. :raise UsageError: it is none of these.
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
    """The one topology, or the one at a point of its matrix.

    :raise UsageError: there are several, or none of that name; raises as `points` too.
    """
    found = resolve_points(wanted, folder, where)
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    some = ", ".join(list(found)[:4])
    if name is None:
        raise UsageError(
            f"{where}: expected one topology, got a matrix of {len(found)} points; choose one with point=, such as {some}"
        )
    if name not in found:
        raise UsageError(f"{where}: expected a point of the matrix, such as {some}; got {name!r}")
    return found[name]
