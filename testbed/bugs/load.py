"""Bug files to `Case` values, every mistake at once with its place; and back to a file that needs no other."""

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
    """Where a script's first line stands; `exact`: and its other lines below it, one in each line."""

    file: str
    line: int
    column: int = 1
    exact: bool = True


# What a bug runs on where its file says nothing.
PLAIN_GUEST: dict[str, Any] = {"version": 1, "guests": {"g0": {"cpus": 2}}}


def is_bug(path: Path) -> bool:
    """Whether a file is one of a bug, rather than of a topology, by any of its keys: it may lack some; one that cannot be read is none."""
    try:
        keys = set(read_mapping(read_file(path), Reader(str(path))))
        return "signature" in keys or ("guests" not in keys and not keys.isdisjoint(_OF_BUGS))
    except TopologyError:
        return False


# Keys that no topology has.
_OF_BUGS = {"summary", "kernels", "prepare", "script", "script-file", "topology"}

# What of a guest any of some kernels cannot do (`topology/kernel_abilities.py`).
KernelsCheck = Callable[[Sequence[str], GuestModel], Iterable[Mistake]]


def load(
    path: Path,
    *,
    limits: HostLimits | None = None,
    kernel: Callable[[str], None] | None = None,
    check_kernels: KernelsCheck | None = None,
) -> Case:
    """The bug in a file. `kernel` raises UsageError for one that it names and that is not there; `check_kernels` says what of its guest the kernels
    that it names cannot do.

    :raise TopologyError: it cannot be read, or says something wrong; holds every mistake.
    """
    return _case(
        read_plain(read_file(path), str(path)), path.parent, limits, kernel=kernel, check_kernels=check_kernels
    )


def script_places(path: Path) -> dict[str, Place]:
    """Where the `script` and `prepare` of a valid bug file stand."""
    plain, reader = read_plain(read_file(path), str(path))
    return {**_places(reader), **_script(plain, reader, path.parent)}


def parse(text: str, file: str = "bug.yaml", folder: Path | None = None) -> Case:
    """The bug in a text; without a `folder` it may name no other files. Raises as `load`."""
    return _case(read_plain(text, file), folder, None)


def read_plain(text: str, file: str) -> tuple[dict[str, Any], Reader]:
    """The mapping in a text, and where its parts stood."""
    reader = Reader(file)
    return read_mapping(text, reader), reader


def self_contained(path: Path) -> dict[str, Any]:
    """The mapping in a bug file, with its topology and script in it. The file is valid: `load` it first."""
    return inline_files(read_plain(read_file(path), str(path))[0], path)


def inline_files(plain: dict[str, Any], path: Path, sources: dict[str, str] | None = None) -> dict[str, Any]:
    """A bug's mapping with its topology and script in it, which are relative to the file `path`. `sources`: gets what is read.

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
    """A bug's mapping as a file, below the lines of `head`, which become comments."""
    comments = "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines())
    return comments + yaml.dump(
        plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140, default_flow_style=None
    )


class _Dumper(yaml.SafeDumper):
    """Scripts stand as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # A block cannot hold lines that end in spaces, nor what YAML does not print.
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
    """The place of a bug's guest in its file; of one that is in another file, or none, that of the topology."""
    named = topology.get("guests") if isinstance(topology, dict) else None
    return ("topology", "guests", next(iter(named))) if named else ("topology",)


def problem(place: Place | None, key: str, line: int, message: str) -> Problem:
    """A mistake in a line of a script; without a place of its own it is named by the script's key."""
    if place is None:
        return Problem(file=key, line=line, column=1, path=key, message=message)
    if place.exact:
        return Problem(file=place.file, line=place.line + line - 1, column=1, path=key, message=message)
    return Problem(
        file=place.file, line=place.line, column=place.column, path=key, message=f"in its line {line}: {message}"
    )


def _places(reader: Reader) -> dict[str, Place]:
    """Where the scripts stand that a bug file holds."""
    return {
        key: Place(file=mark.file, line=mark.line + exact, column=mark.column, exact=exact)
        for key in ("prepare", "script")
        if (mark := reader.positions.get((key,))) is not None
        for exact in [(key,) in reader.blocks]
    }


def _script(plain: dict[str, Any], reader: Reader, folder: Path | None) -> dict[str, Place]:
    """Put the script that a file names in its place; where it stands."""
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
            # It is in every guest, and in the bundles that people send each other.
            plain["script"] = read_referenced_file(folder / name, within=folder)
            reader.sources[trust.content_hash(plain["script"])] = str(folder / name)
            plain.setdefault("script-name", Path(name).name)
            found["script"] = Place(file=str(folder / name), line=1)
        except TopologyError as error:
            reader.problems += error.problems
    plain.setdefault("script", ":")  # what is wrong has been said
    return found


def _guest(said: Any, reader: Reader, folder: Path | None, limits: HostLimits | None) -> GuestModel | None:
    """The one guest of a bug's topology; what is wrong goes to the reader."""
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
    """What a file says of its bug, with misspelt keys read as what they are near to; what is wrong goes to the reader."""
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
    """The bug in a mapping that stands for itself, as `self_contained` gives it; `script_file`: where its script was; `sources`: all
    that the mapping was read from, without which its `qemu-args` are not trusted.

    :raise TopologyError: it is none.
    """
    return _case(
        (plain, Reader(file, dict(sources or {}))),
        None,
        None,
        elsewhere={} if script_file is None else {"script": Place(file=script_file, line=1)},
    )


def error_at(path: Path, message: str) -> TopologyError:
    """The error of a bug file as a whole."""
    return single_error(str(path), 1, 1, message)
