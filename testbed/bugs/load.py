"""Loads bug files into `Case` values and reports all mistakes at once with their places; writes bugs back as
self-contained files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.bugs import script_files
from testbed.bugs.model import Bug, Case, Document
from testbed.errors import Problem, TopologyError, UsageError
from testbed.topology import trust
from testbed.topology.base import KeyPath
from testbed.topology.check import Mistake
from testbed.topology.host_limits import HostLimits
from testbed.topology.load import merge_extended, points_from_mapping
from testbed.topology.model import GuestModel
from testbed.topology.tolerant import TolerantValidation
from testbed.topology.yaml_reader import (
    Reader,
    read_file,
    read_mapping,
    read_referenced_file,
    reads_as_text,
    single_error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the first line of a script is. `exact`: its other lines follow below, one per line."""

    file: str
    line: int
    column: int = 1
    exact: bool = True


# The topology of a bug whose file has none.
PLAIN_GUEST: dict[str, Any] = {"version": 1, "guests": {"g0": {"cpus": 2}}}


def is_bug(path: Path) -> bool:
    """Whether a file is a bug file rather than a topology, by any of its keys, since some may be missing. False if it
    cannot be read."""
    try:
        keys = set(read_mapping(read_file(path), Reader(str(path))))
        return "signature" in keys or ("guests" not in keys and not keys.isdisjoint(_OF_BUGS))
    except TopologyError:
        return False


# Keys that no topology has.
_OF_BUGS = {"summary", "kernels", "prepare", "script", "script-file", "topology"}

# Finds what a guest needs that one of these kernels cannot do (`topology/kernel_abilities.py`).
KernelsCheck = Callable[[Sequence[str], GuestModel], Iterable[Mistake]]


def load(
    path: Path,
    *,
    limits: HostLimits | None = None,
    kernel: Callable[[str], None] | None = None,
    check_kernels: KernelsCheck | None = None,
) -> Case:
    """The bug in a file. `kernel` raises UsageError for one that it names and that is not there; `check_kernels` says
    what of its guest the kernels that it names cannot do.

    :raise TopologyError: it cannot be read, or says something wrong; holds every mistake.
    """
    return _case(
        read_plain(read_file(path), str(path)), path.parent, limits, kernel=kernel, check_kernels=check_kernels
    )


def script_places(path: Path) -> dict[str, Place]:
    """Return the places of `script` and `prepare` in a valid bug file."""
    plain, reader = read_plain(read_file(path), str(path))
    return {**_places(reader), **_script(plain, reader, path.parent)}


def parse(text: str, file: str = "bug.yaml", folder: Path | None = None) -> Case:
    """Parse the text of a bug file; without a `folder` it may not name other files. Raises as `load`."""
    return _case(read_plain(text, file), folder, None)


def read_plain(text: str, file: str) -> tuple[dict[str, Any], Reader]:
    """Read the mapping in a text; the reader has the places of its parts."""
    reader = Reader(file)
    return read_mapping(text, reader), reader


def self_contained(path: Path) -> dict[str, Any]:
    """Return the mapping of a valid bug file with its topology and script inlined. `load` the file first."""
    return inline_files(read_plain(read_file(path), str(path))[0], path)


def inline_files(plain: dict[str, Any], path: Path, sources: dict[str, str] | None = None) -> dict[str, Any]:
    """Inline the topology and script files of a bug's mapping, whose paths are relative to the file `path`. `sources`:
    collects what is read.

    :raise TopologyError: one of them cannot be read.
    """
    plain = copy.deepcopy(plain)
    script = plain.pop("script-file", None)
    if script is not None:
        plain["script"] = read_referenced_file(path.parent / str(script), within=path.parent)
        plain.setdefault("script-name", Path(str(script)).name)
    topology, folder = plain.get("topology"), path.parent
    if isinstance(topology, str):
        folder = (path.parent / topology).parent
        plain["topology"] = _read_topology(path.parent / topology, sources)
    elif isinstance(topology, dict) and "extends" in topology:
        plain["topology"] = merge_extended(topology, Reader(str(path)), path)
    for guest in (plain.get("topology") or {}).get("guests", {}).values():
        for disk in (guest or {}).get("disks", {}).values():
            if "image" in disk:
                disk["image"] = str((folder / disk["image"]).resolve())
    return plain


def _read_topology(path: Path, sources: dict[str, str] | None) -> dict[str, Any]:
    reader = Reader(str(path), sources)
    return merge_extended(read_mapping(read_referenced_file(path), reader), reader, path)


def to_yaml(plain: dict[str, Any], head: str = "") -> str:
    """Format a bug's mapping as YAML, below the lines of `head` as comments."""
    comments = "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines())
    return comments + yaml.dump(
        plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140, default_flow_style=None
    )


class _Dumper(yaml.SafeDumper):
    """Writes scripts as literal blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # A literal block cannot hold lines that end in spaces, or characters that YAML does not print.
    plain = "\n" in text and not any(line != line.rstrip() for line in text.split("\n"))
    odd = any(not character.isprintable() and character not in "\n\t" for character in text)
    style = '"' if odd else "|" if plain else None if reads_as_text(text) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _case(
    found: tuple[dict[str, Any], Reader],
    folder: Path | None,
    limits: HostLimits | None,
    *,
    elsewhere: dict[str, Place] | None = None,
    kernel: Callable[[str], None] | None = None,
    check_kernels: KernelsCheck | None = None,
) -> Case:
    plain, reader = found
    plain = copy.deepcopy(plain)
    places = {**_places(reader), **_script(plain, reader, folder), **(elsewhere or {})}
    topology = plain.pop("topology", None)
    guest = _guest(topology, reader, folder, limits)
    bug = _bug(plain, reader)
    if bug is not None and kernel is not None:
        _kernels(bug, reader, kernel)
    if bug is not None and guest is not None:
        for key, script in (("prepare", bug.preparation), ("script", bug.main)):
            if script is not None:
                said = script_files.script_mistakes(script.text, guest)
                reader.problems += (problem(places.get(key), key, line, message) for line, message in said)
        for where, message in (
            check_kernels((*bug.kernels.shows, *bug.kernels.clean), guest) if check_kernels is not None else ()
        ):
            reader.add_problem((*_of_guest(topology), *where), message)
    if reader.problems or bug is None or guest is None:
        raise TopologyError(
            tuple(
                sorted(reader.problems, key=lambda problem: (problem.file != reader.file, problem.line, problem.column))
            )
        )
    return Case(bug=bug, guest=guest)


def _kernels(bug: Bug, reader: Reader, kernel: Callable[[str], None]) -> None:
    for side, specs in (("shows", bug.kernels.shows), ("clean", bug.kernels.clean)):
        for number, spec in enumerate(specs):
            try:
                kernel(spec)
            except UsageError as error:
                reader.add_problem(("kernels", side, number), str(error))


def _of_guest(topology: Any) -> KeyPath:
    """The place of a bug's guest in its file; if it is in another file, or there is none, the place of the topology."""
    named = topology.get("guests") if isinstance(topology, dict) else None
    return ("topology", "guests", next(iter(named))) if named else ("topology",)


def problem(place: Place | None, key: str, line: int, message: str) -> Problem:
    """Return a mistake in a line of a script; a script without a place is named by its key."""
    if place is None:
        return Problem(file=key, line=line, column=1, path=key, message=message)
    if place.exact:
        return Problem(file=place.file, line=place.line + line - 1, column=1, path=key, message=message)
    return Problem(
        file=place.file, line=place.line, column=place.column, path=key, message=f"in its line {line}: {message}"
    )


def _places(reader: Reader) -> dict[str, Place]:
    """Return the places of the scripts in a bug file."""
    return {
        key: Place(file=mark.file, line=mark.line + exact, column=mark.column, exact=exact)
        for key in ("prepare", "script")
        if (mark := reader.positions.get((key,))) is not None
        for exact in [(key,) in reader.blocks]
    }


def _script(plain: dict[str, Any], reader: Reader, folder: Path | None) -> dict[str, Place]:
    """Replace `script-file` in the mapping by the text of that file; returns its place."""
    name = plain.pop("script-file", None)
    found: dict[str, Place] = {}
    if name is None:
        return found
    where: KeyPath = ("script-file",)
    if "script" in plain:
        reader.add_problem(where, "expected script or script-file, got both")
    elif folder is None or not isinstance(name, str) or Path(name).is_absolute():
        reader.add_problem(where, f"expected the path of a script, relative to this file, got {name!r}")
    else:
        try:
            # The script gets into every guest, and into bundles that people send each other.
            plain["script"] = read_referenced_file(folder / name, within=folder)
            reader.sources[trust.content_hash(plain["script"])] = str(folder / name)
            plain.setdefault("script-name", Path(name).name)
            found["script"] = Place(file=str(folder / name), line=1)
        except TopologyError as error:
            reader.problems += error.problems
    plain.setdefault("script", ":")  # the mistake has been reported
    return found


def _guest(said: Any, reader: Reader, folder: Path | None, limits: HostLimits | None) -> GuestModel | None:
    """Return the only guest of a bug's topology; mistakes go to the reader."""
    where: KeyPath = ("topology",)
    try:
        if isinstance(said, str):
            if folder is None or Path(said).is_absolute() or not said.endswith(".yaml"):
                reader.add_problem(
                    where, f"expected a topology, or the path of a .yaml file, relative to this one, got {said!r}"
                )
                return None
            other = Reader(str(folder / said), reader.sources)
            found = points_from_mapping(
                read_mapping(read_referenced_file(folder / said), other), other, folder / said, limits
            )
        elif said is None or isinstance(said, dict):
            below = reader.subreader(where)
            path = None if folder is None else Path(reader.file)
            plain = {"version": 1, **(PLAIN_GUEST if said is None else said)}
            found = points_from_mapping(plain, below, path, limits)
        else:
            reader.add_problem(where, f"expected a mapping, or the path of a .yaml file, got {said!r}")
            return None
    except TopologyError as error:
        reader.problems += error.problems
        return None
    topology = next(iter(found.values()))
    if len(found) > 1 or len(topology.guests) > 1:
        many = f"a matrix of {len(found)} points" if len(found) > 1 else f"{len(topology.guests)} guests"
        reader.add_problem(where, f"expected one guest, on which the script runs, got {many}")
        return None
    return next(iter(topology.guests.values()))


def _bug(plain: dict[str, Any], reader: Reader) -> Bug | None:
    """Return the bug of a file; mistakes go to the reader. Misspelt keys are read as the keys that they resemble."""
    checked = TolerantValidation(Bug, plain, Document)
    for failure in checked.failures:
        reader.add_problem(
            failure.where, failure.message, reader.key_positions.get(failure.where) if failure.at_key else None
        )
    if checked.value is None or not checked.whole:
        return None
    for where, said in checked.value.mistakes():
        reader.add_problem(checked.original(where), said)
    return checked.value


def parse_mapping(
    plain: dict[str, Any],
    file: str = "bug.yaml",
    *,
    script_file: str | None = None,
    sources: trust.Sources | None = None,
) -> Case:
    """Parse a self-contained mapping, as `self_contained` returns. `script_file`: where its script was; `sources`: all
    files that it was read from, without which its `qemu-args` are not trusted.

    :raise TopologyError: it is no valid bug.
    """
    return _case(
        (plain, Reader(file, dict(sources or {}))),
        None,
        None,
        elsewhere={} if script_file is None else {"script": Place(file=script_file, line=1)},
    )


def error_at(path: Path, message: str) -> TopologyError:
    """Return an error about a bug file as a whole."""
    return single_error(str(path), 1, 1, message)
