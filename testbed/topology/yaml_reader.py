"""Reads YAML into plain values, and remembers the line and column of each.

Scalars are parsed as in YAML 1.2. A bare word that YAML 1.1, which most libraries implement, parses differently (`on`
as true, `1:30` as 90) is refused, so that no two readers see different topologies.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.errors import Problem, TopologyError
from testbed.topology import trust
from testbed.topology.base import KeyPath

_MAX_BYTES = 1 << 20
_MAX_NODES = 200_000
_MOST_BRACKETS = 64
# The content of pipes, which can be read only once, while a file is read several times.
_pipes: dict[Path, bytes] = {}
_YAML_1_1 = (
    (
        re.compile(r"[yYnN]|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|True|TRUE|False|FALSE"),
        "YAML 1.1 reads it as true or false; write true or false, or quote it",
    ),
    (re.compile(r"Null|NULL"), "readers of YAML take it for nothing; write null, or quote it"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "YAML 1.1 reads it as a number of base 60; quote it"),
    (
        re.compile(r"[-+]?0[0-9]+"),
        "YAML 1.1 reads it as octal, or as text where 8 or 9 is in it; write it without the leading 0, or quote it",
    ),
    (
        re.compile(r"[-+]?0[xXbBoO][0-9a-fA-F_]+|[-+]?[0-9]+(_[0-9]*)+(\.[0-9_]*)?|[-+]?[0-9]+[eE][-+]?[0-9]+"),
        "readers of YAML differ about this number; write it in decimal or quote it",
    ),
    (
        re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        "readers of YAML take it for a number that is none; quote it",
    ),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?"), "YAML 1.1 reads it as a date; quote it"),
)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}

_PLAIN = "tag:testbed,plain"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a file; line and column count from 1."""

    file: str
    line: int
    column: int


class Reader:
    """Turns YAML nodes into plain values, and remembers the position of each key and value."""

    def __init__(self, file: str, sources: dict[str, str] | None = None) -> None:
        self.file = file
        # The files that go into the value, by SHA-256 (`trust.Sources`); shared by the readers of extended files.
        self.sources = {} if sources is None else sources
        self.positions: dict[KeyPath, Position] = {}
        self.key_positions: dict[KeyPath, Position] = {}
        self.blocks: set[KeyPath] = set()  # block scalars (|), whose lines are below their position, unchanged
        self.problems: list[Problem] = []
        self._nodes = 0
        self._above: KeyPath = ()

    def add_problem(self, where: KeyPath, message: str, mark: Position | None = None) -> None:
        mark = mark or self._nearest(where)
        self.problems.append(
            Problem(file=mark.file, line=mark.line, column=mark.column, path=self.path(where), message=message)
        )

    def fatal_error(self, where: KeyPath, message: str) -> TopologyError:
        """Return an error with the problems found so far and this last one, after which reading cannot go on."""
        self.add_problem(where, message)
        return TopologyError(tuple(self.problems))

    def path(self, where: KeyPath) -> str:
        """Format a place for messages, relative to the whole file."""
        return format_path((*self._above, *where))

    def subreader(self, where: KeyPath) -> Reader:
        """Return a reader for the part of the file at a place; its messages name places in the whole file."""
        part = Reader(self.file, self.sources)
        part._above = (*self._above, *where)
        part._nodes = self._nodes
        part.positions = {
            place[len(where) :]: mark for place, mark in self.positions.items() if place[: len(where)] == where
        }
        part.key_positions = {
            place[len(where) :]: mark for place, mark in self.key_positions.items() if place[: len(where)] == where
        }
        return part

    def _nearest(self, where: KeyPath) -> Position:
        while where not in self.positions and where:
            where = where[:-1]
        return self.positions.get(where) or Position(self.file, 1, 1)

    def _position(self, mark: yaml.Mark) -> Position:
        return Position(self.file, mark.line + 1, mark.column + 1)

    def value(self, node: yaml.Node, where: KeyPath) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise yaml.YAMLError(f"more than {_MAX_NODES} values (aliases count each time)")
        self.positions[where] = self._position(node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*where, number)) for number, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.style == "|":
            self.blocks.add(where)
        return self._scalar(node, where)

    def _mapping(self, node: yaml.MappingNode, where: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}  # so that its keys are not reported as missing, too
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.add_problem(
                    where, "expected a word as key, got a mapping or a list", self._position(key_node.start_mark)
                )
                continue
            key = key_node.value
            if key == "<<" and key_node.tag == _PLAIN:
                message = (
                    "expected each key by itself, got <<, which merges mappings in YAML 1.1 alone; "
                    "write the keys out, or use `extends`"
                )
                self.add_problem((*where, key), message, self._position(key_node.start_mark))
                merged |= self._merged(value_node, where)
                continue
            self._key(key_node, (*where, key))
            if key in result:
                self.add_problem((*where, key), "the key stands here twice", self._position(key_node.start_mark))
                continue
            self.key_positions[(*where, key)] = self._position(key_node.start_mark)
            result[key] = self.value(value_node, (*where, key))
            if isinstance(value_node, yaml.MappingNode | yaml.SequenceNode):
                self.positions[(*where, key)] = self._position(key_node.start_mark)
        return merged | result

    def _merged(self, node: yaml.Node, where: KeyPath) -> dict[str, Any]:
        """Return the content of a merge key, which has one mapping or a list of them."""
        content = self.value(node, where)
        mappings = content if isinstance(content, list) else [content]
        return {key: value for part in reversed(mappings) if isinstance(part, dict) for key, value in part.items()}

    def _key(self, node: yaml.ScalarNode, where: KeyPath) -> None:
        """Refuse a key that readers of YAML parse differently, except the names `y` and `n` and our own key `on`."""
        if node.tag != _PLAIN or node.value in ("y", "Y", "n", "N", "on"):
            return
        advice = next((advice for pattern, advice in _YAML_1_1 if pattern.fullmatch(node.value)), None)
        if advice is None and node.value in ("true", "false", "null", "~", ""):
            advice = "it is no text; quote it"
        if advice is not None:
            message = f"expected a key that every reader of YAML reads alike, got {node.value} ({advice})"
            self.add_problem(where, message, self._position(node.start_mark))

    def _scalar(self, node: yaml.Node, where: KeyPath) -> Any:
        text: str = node.value
        if _NO_TEXT.search(text):
            # Only escapes in quoted text can make them. No file name and no argument can have them.
            self.add_problem(where, f"expected text without NUL and without halves of characters, got {text!r}")
            return _NO_TEXT.sub("", text)
        if node.tag not in ("tag:yaml.org,2002:str", _PLAIN):
            self.add_problem(where, f"expected no tag, got {node.tag}")
        if node.tag != _PLAIN:
            return text
        for pattern, advice in _YAML_1_1:
            if pattern.fullmatch(text):
                self.add_problem(
                    where, f"expected a value that every reader of YAML reads alike, got {text} ({advice})"
                )
                return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text) and len(text) < 30:
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text


class _Loader(yaml.SafeLoader):
    """Gives plain scalars no implicit types, which `Reader` does, and limits the depth of nested brackets.

    PyYAML checks all open brackets for each token.
    """

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level >= _MOST_BRACKETS:
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it untyped


def read_file(path: Path) -> str:
    """Read a file that the user has named.

    :raise TopologyError: the file cannot be read, is too large, or is no text.
    """
    return _text(path, lambda: _bytes_of(path))


def read_referenced_file(path: Path, within: Path | None = None) -> str:
    """Read a file that another file names, which may be from somebody else; pipes and devices are not read.

    `within`: the folder that must contain the file, after following links.

    :raise TopologyError: as `read_file`.
    """
    return _text(path, lambda: _bytes_named(path, within))


def _text(path: Path, read: Callable[[], bytes]) -> str:
    try:
        data = read()
    except OSError as error:
        raise single_error(str(path), 1, 1, f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # NUL
        raise single_error(str(path), 1, 1, f"cannot be read: {error}") from error
    if len(data) > _MAX_BYTES:
        raise single_error(str(path), 1, 1, f"expected at most {_MAX_BYTES} bytes, got more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        utf16 = ", got UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise single_error(str(path), *_end_of(before), f"expected UTF-8 text{utf16}") from error


def _bytes_named(path: Path, within: Path | None) -> bytes:
    """Read at most one byte more than allowed.

    :raise OSError: the file cannot be read. :raise TopologyError: it is no regular file, or is outside of `within`.
    """
    no_file = single_error(str(path), 1, 1, "cannot be read: expected a file, got something else")
    if not stat.S_ISREG(path.stat().st_mode):  # some devices do something when they are opened
        raise no_file
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise no_file
        if within is not None and not Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(within.resolve()):
            raise single_error(
                str(path), 1, 1, f"cannot be read: expected a file in {within.resolve()}, got one that lies elsewhere"
            )
        return file.read(_MAX_BYTES + 1) or b""  # read() returns None if it would block (/proc/kmsg)


def _bytes_of(path: Path) -> bytes:
    """Read at most one byte more than allowed, because some files have no end.

    :raise OSError: the file cannot be read. :raise TopologyError: it is a named pipe, which might block for ever.
    """
    if path in _pipes:
        return _pipes[path]
    if stat.S_ISFIFO(path.lstat().st_mode):  # the pipe of a shell's <(...) is behind a link
        raise single_error(str(path), 1, 1, "cannot be read: expected a file, got a named pipe")
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            _pipes[path] = data
    return data


def read_mapping(text: str, reader: Reader) -> dict[str, Any]:
    """Read the mapping in a text; mistakes in single values are added to `reader.problems`.

    :raise TopologyError: the text is no YAML, or no mapping.
    """
    reader.sources[trust.content_hash(text)] = reader.file
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise single_error(reader.file, 1, 1, "expected a topology, got an empty file")
        plain = reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise single_error(reader.file, line, column, f"not YAML: {_advised(error)}") from error
    except yaml.reader.ReaderError as error:
        message = f"not YAML: the character U+{ord(text[error.position]):04X} must not stand in it"
        raise single_error(reader.file, *_end_of(text[: error.position]), message) from error
    except yaml.YAMLError as error:
        raise single_error(reader.file, 1, 1, f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise single_error(reader.file, 1, 1, "nested too deeply, or an alias holds itself") from error
    if not isinstance(plain, dict):
        raise single_error(
            reader.file, 1, 1, f"expected a mapping with `version` and `guests`, got {type(plain).__name__}"
        )
    return plain


def _advised(error: yaml.MarkedYAMLError) -> str:
    """Return YAML's own message, or a more helpful one."""
    problem = str(error.problem or error.context)
    if "'\\t'" in problem:
        return "a tab cannot indent, or stand before a value; use spaces"
    if "another document" in problem:
        return "expected one document, got another after ---"
    return problem


def _end_of(before: str) -> tuple[int, int]:
    """Return line and column after a text."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def single_error(file: str, line: int, column: int, message: str) -> TopologyError:
    """Return the error of a single mistake."""
    return TopologyError((Problem(file=file, line=line, column=column, path="", message=message),))


def reads_as_text(text: str) -> bool:
    """Return whether every reader of YAML parses a bare word as text; otherwise it must be quoted."""
    other = (
        any(pattern.fullmatch(text) for pattern, _ in _YAML_1_1) or _INTEGER.fullmatch(text) or _FLOAT.fullmatch(text)
    )
    return text not in _CONSTANTS and not other


def format_path(where: KeyPath) -> str:
    """Format a place for messages."""
    return ".".join(str(part) for part in where)
