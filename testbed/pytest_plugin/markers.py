"""Reads the markers of a test when it is collected: topology, kernels, requirements, time limit. Errors name the
place.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import TestbedError
from testbed.pytest_plugin.session import STATE, PluginState
from testbed.store.kernels.table import short_name
from testbed.topology import Topology

_REQUIRES = ("module", "config", "tool", "qemu")
_OWN = "testbed.pytest_plugin"


class _MarkerError(Exception):
    """A marker is malformed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a guest must have; names in the order of the test's markers."""

    module: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    tool: tuple[str, ...] = ()
    qemu: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.module or self.config or self.tool or self.qemu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Kernels of a test. `each`: to run it on, one after the other; `base`, `patched`: of `compare`. Empty or
    None: not named.
    """

    each: tuple[str, ...] = ()
    base: str | None = None
    patched: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The topology of a test, by point of its matrix. `where`: what it was read from; `titles`: pytest ids of the
    points.
    """

    topologies: Mapping[str, Topology]
    where: str
    titles: Mapping[str, str] = field(default_factory=dict)


def check_options(config: pytest.Config) -> None:
    """:raise pytest.UsageError: an option names something that is not there."""
    state = config.stash[STATE]
    for option in ("kernel", "base", "patched"):
        given = config.getoption(f"testbed_{option}")
        for kernel in given if isinstance(given, list) else [given] if given else []:
            try:
                state.table.resolve(kernel)
            except TestbedError as error:
                raise pytest.UsageError(f"--testbed-{option}: {error}") from None
    topology = config.getoption("testbed_topology")
    if topology is not None:
        try:
            _read(state, Path(topology), config.invocation_params.dir, "--testbed-topology")
        except TestbedError as error:
            raise pytest.UsageError(f"--testbed-topology: {error}") from None
    artifacts = config.getoption("testbed_artifacts")
    if artifacts is not None:
        folder = config.invocation_params.dir / artifacts
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(
                f"--testbed-artifacts {artifacts}: expected a folder, got {folder}: {error.strerror}"
            ) from None


def place(node: pytest.Item) -> str:
    """Return where a test is, as messages begin with it."""
    file, line, name = node.location
    return f"{file}:{(line or 0) + 1}: {name}"


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Check the markers of a test, and parametrize it by kernels and points of its matrix.

    :raise CollectError: a marker is wrong.
    """
    node, state = metafunc.definition, metafunc.config.stash[STATE]
    wrong: list[str] = []
    with _collect_errors(wrong):
        _check_timeout(node)
    with _collect_errors(wrong):
        needs(node)
    named = Kernels()
    with _collect_errors(wrong):
        named = kernels(node)
    for kernel in dict.fromkeys((*named.each, named.base, named.patched)):
        if kernel is not None:
            with _collect_errors(wrong):
                _resolved(state, kernel)
    found: Points | None = None
    with _collect_errors(wrong):
        if "_testbed_point" in metafunc.fixturenames and _is_ours(metafunc, "topology"):
            found = points(node)
        elif node.get_closest_marker("testbed_topology") is not None:
            points(node)
    if wrong:
        raise pytest.Collector.CollectError("\n".join(f"{place(node)}: {message}" for message in wrong))
    if "_testbed_kernel" in metafunc.fixturenames:
        names = named.each or _own_kernel(found) or (state.table.patched,)
        metafunc.parametrize("_testbed_kernel", names, ids=[short_name(name) for name in names], indirect=True)
        state.first_kernel = state.first_kernel or names[0]
    if found is not None and len(found.topologies) > 1:
        metafunc.parametrize(
            "_testbed_point",
            list(found.topologies),
            ids=[found.titles[name] for name in found.topologies],
            indirect=True,
        )


@contextlib.contextmanager
def _collect_errors(wrong: list[str]) -> Iterator[None]:
    """Append an error of the block to `wrong`, and go on."""
    try:
        yield
    except (TestbedError, _MarkerError) as error:
        wrong.append(str(error))


def _is_ours(metafunc: pytest.Metafunc, fixture: str) -> bool:
    """Whether a fixture is the plugin's: a suite may override it."""
    found = getattr(metafunc, "_arg2fixturedefs", {}).get(fixture)
    return not found or str(getattr(found[-1].func, "__module__", "")).startswith(_OWN)


def _own_kernel(found: Points | None) -> tuple[str, ...]:
    """Return the kernel that a topology names for all of its guests, if it does."""
    named = (
        {guest.kernel for topology in found.topologies.values() for guest in topology.guests.values()}
        if found is not None
        else set()
    )
    only = next(iter(named)) if len(named) == 1 else None
    return (only,) if only is not None else ()


def _resolved(state: PluginState, kernel: str) -> None:
    try:
        state.table.resolve(kernel)
    except TestbedError as error:
        raise _MarkerError(f"testbed_kernels: {error}") from None


def kernels(node: pytest.Item) -> Kernels:
    """From the command line, else from the nearest marker."""
    option = node.config.getoption
    marker = node.get_closest_marker("testbed_kernels")
    args: tuple[Any, ...] = marker.args if marker is not None else ()
    more = dict(marker.kwargs) if marker is not None else {}
    base, patched = more.pop("base", None), more.pop("patched", None)
    names = [*args, *(name for name in (base, patched) if name is not None)]
    if more or not all(isinstance(name, str) and name for name in names) or (marker is not None and not names):
        got = ", ".join((*map(repr, args), *(f"{key}={value!r}" for key, value in more.items()))) or "nothing"
        raise _MarkerError(f"testbed_kernels: expected names of kernels, or base= and patched=, got {got}")
    if len(set(args)) < len(args):
        raise _MarkerError(f"testbed_kernels: expected each kernel once, got {', '.join(args)}")
    return Kernels(
        each=tuple(dict.fromkeys(option("testbed_kernel"))) or args,
        base=option("testbed_base") or base,
        patched=option("testbed_patched") or patched,
    )


def needs(node: pytest.Item) -> Needs:
    """Combine the requirements of all markers, the nearest last."""
    found: dict[str, tuple[str, ...]] = {}
    wrong: list[str] = []
    for marker in reversed(list(node.iter_markers("testbed_requires"))):
        unknown = set(marker.kwargs) - set(_REQUIRES)
        if marker.args or not marker.kwargs or unknown:
            got = ", ".join((*map(repr, marker.args), *marker.kwargs)) or "nothing"
            wrong.append(f"testbed_requires: expected {', '.join(f'{name}=' for name in _REQUIRES)}, got {got}")
        for kind, value in marker.kwargs.items():
            names = (value,) if isinstance(value, str) else value
            if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name.strip() for name in names):
                wrong.append(f"testbed_requires: {kind}: expected a name or several, got {value!r}")
            elif kind not in unknown:
                found[kind] = tuple(dict.fromkeys((*found.get(kind, ()), *names)))
    if wrong:
        raise _MarkerError("; ".join(wrong))
    return Needs(**found)


def _check_timeout(node: pytest.Function) -> None:
    marker = node.get_closest_marker("testbed_timeout")
    if marker is None:
        return
    match marker.args:
        case (int() | float() as seconds,) if not marker.kwargs and not isinstance(seconds, bool) and 0 < seconds < 1e6:
            if not inspect.iscoroutinefunction(node.obj):
                raise _MarkerError("testbed_timeout: expected an `async def` test")
        case _:
            raise _MarkerError(f"testbed_timeout: expected a number of seconds, got {marker.args}")


def points(node: pytest.Item) -> Points:
    """Return the topology of a test: that of its marker, or of --testbed-topology, or of the file in its folder with
    the name of its module, or of topology.yaml there, or else one guest without disks.

    :raise TestbedError: the topology is wrong.
    """
    state, folder = node.config.stash[STATE], node.path.parent
    marker, option = node.get_closest_marker("testbed_topology"), node.config.getoption("testbed_topology")
    if marker is not None:
        source, only = _marked(marker)
        where = f"testbed_topology of {place(node)}"
        found = _read(state, source, folder, where)
        if only is not None and only not in found:
            some = ", ".join(list(found)[:4]) if "" not in found else "none, for it has no matrix"
            raise _MarkerError(f"testbed_topology: expected a point of the matrix, such as {some}; got {only!r}")
        return _titled(found if only is None else {only: found[only]}, where)
    if option is not None:
        return _titled(_read(state, Path(option), node.config.invocation_params.dir, "--testbed-topology"), option)
    for beside in (node.path.with_suffix(".yaml"), folder / "topology.yaml"):
        if beside.is_file():
            return _titled(_read(state, beside, folder, str(beside)), str(beside))
    return _titled(_read(state, {"guests": {"g0": {}}}, folder, "the default"), "the default")


def _marked(marker: pytest.Mark) -> tuple[Any, str | None]:
    keys = dict(marker.kwargs)
    only = keys.pop("point", None)
    if only is not None and not isinstance(only, str):
        raise _MarkerError(f"testbed_topology: point: expected a name such as disk=nvme, got {only!r}")
    match marker.args:
        case () if keys:
            return {"guests": {"g0": keys}}, only
        case (str() | Path() | Mapping() as source,) if not keys and source:
            return source, only
    got = ", ".join((*map(repr, marker.args), *keys)) or "nothing"
    raise _MarkerError(
        f"testbed_topology: expected a path, YAML, a mapping, or the keys of a guest such as disks=, got {got}"
    )


def _read(state: PluginState, source: Any, folder: Path, where: str) -> dict[str, Topology]:
    """Read the points of a topology, once per session."""
    from testbed.api import topologies

    is_file = isinstance(source, Path) or (isinstance(source, str) and "\n" not in source)
    key = str((folder / source).resolve()) if is_file else f"{folder}: {source!r}"
    if key not in state.points:
        state.points[key] = topologies.resolve_points(
            _short(folder / source) if is_file else source, Path() if is_file else folder, where
        )
    return state.points[key]


def _short(path: Path) -> Path:
    """Return a path as messages show it: relative, if it is below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _titled(topologies: dict[str, Topology], where: str) -> Points:
    """Give each point a pytest id: its values, such as `nvme-ext4`, or its whole name if two would be equal."""
    short = {name: "-".join(part.partition("=")[2] for part in name.split(",")) for name in topologies}
    often = Counter(short.values())
    return Points(
        topologies=topologies,
        where=where,
        titles={name: short[name] if often[short[name]] == 1 else name for name in topologies},
    )
