"""YAML text to a `Topology`: every mistake at once, each with its line and column.

Scalars are read as YAML 1.2 reads them. Where YAML 1.1, which most libraries speak, would read a bare word otherwise (`on` as true,
`1:30` as 90), the file is refused: two readers must not see two topologies.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from testbed.errors import Problem, TopologyError
from testbed.topology.check import check
from testbed.topology.model import Disk, Guest, Limits, Loop, Topology

_MAX_BYTES = 1 << 20
_MAX_NODES = 200_000
_YAML_1_1 = (
    (
        re.compile(r"[yYnN]|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|True|TRUE|False|FALSE"),
        "YAML 1.1 reads it as true or false; write true or false, or quote it",
    ),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "YAML 1.1 reads it as a number of base 60; quote it"),
    (
        re.compile(r"0[0-7]+|0[xXbBoO][0-9a-fA-F_]+|[-+]?[0-9]+(_[0-9]+)+"),
        "readers of YAML differ about this number; write it in decimal or quote it",
    ),
)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}

Where = tuple[str | int, ...]


class _Reader:
    """Turns YAML nodes into plain values, and remembers where each key and value stood."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[Where, yaml.Mark] = {}
        self.key_marks: dict[Where, yaml.Mark] = {}
        self.problems: list[Problem] = []
        self._nodes = 0

    def problem(self, where: Where, message: str, mark: yaml.Mark | None = None) -> None:
        mark = mark or self._nearest(where)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        self.problems.append(Problem(file=self.file, line=line, column=column, path=_dotted(where), message=message))

    def _nearest(self, where: Where) -> yaml.Mark | None:
        while where not in self.marks and where:
            where = where[:-1]
        return self.marks.get(where)

    def value(self, node: yaml.Node, where: Where) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise yaml.YAMLError(f"more than {_MAX_NODES} values (aliases count each time)")
        self.marks[where] = node.start_mark
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*where, number)) for number, child in enumerate(node.value)]
        return self._scalar(node, where)

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(where, "expected a word as key, got a mapping or a list", key_node.start_mark)
                continue
            key = key_node.value
            if key in result:
                self.problem((*where, key), "the key stands here twice", key_node.start_mark)
                continue
            self.key_marks[(*where, key)] = key_node.start_mark
            result[key] = self.value(value_node, (*where, key))
            if isinstance(value_node, yaml.MappingNode | yaml.SequenceNode):
                self.marks[(*where, key)] = key_node.start_mark
        return result

    def _scalar(self, node: yaml.Node, where: Where) -> Any:
        text: str = node.value
        if node.tag not in ("tag:yaml.org,2002:str", "tag:testbed,plain"):
            self.problem(where, f"expected no tag, got {node.tag}")
        if node.tag != "tag:testbed,plain":
            return text
        for pattern, advice in _YAML_1_1:
            if pattern.fullmatch(text):
                self.problem(where, f"expected a value that every reader of YAML reads alike, got {text} ({advice})")
                return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text) and len(text) < 30:
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text


class _Loader(yaml.SafeLoader):
    """Leaves every plain scalar to `_Reader`: no implicit types."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return "tag:testbed,plain"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it untyped


def load(path: Path) -> Topology:
    """The topology in a file.

    :raise TopologyError: the file cannot be read, or says something wrong; holds every mistake.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _single(str(path), 1, 1, f"cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise _single(str(path), 1, 1, f"expected at most {_MAX_BYTES} bytes, got {len(data)}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _single(str(path), data[: error.start].count(b"\n") + 1, 1, "expected UTF-8 text") from error
    return parse(text, str(path))


def parse(text: str, file: str) -> Topology:
    """The topology in a text; `file` is how messages call it.

    :raise TopologyError: with every mistake.
    """
    reader = _Reader(file)
    plain = _read(text, reader)
    topology = None
    try:
        topology = Topology.model_validate(plain)
    except ValidationError as invalid:
        for error in invalid.errors():
            where = tuple(part for part in error["loc"] if part != "[key]")
            if _dotted(where) not in {problem.path for problem in reader.problems}:
                at_key = error["type"] == "extra_forbidden"
                reader.problem(where, _message(error, where), reader.key_marks.get(where) if at_key else None)
    if topology is not None:
        for where, message in check(topology):
            reader.problem(where, message)
    if reader.problems:
        raise TopologyError(tuple(sorted(reader.problems, key=lambda problem: (problem.line, problem.column))))
    assert topology is not None
    return topology


def _read(text: str, reader: _Reader) -> Any:
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise _single(reader.file, 1, 1, "expected a topology, got an empty file")
        plain = reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise _single(reader.file, line, column, f"not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise _single(reader.file, 1, 1, f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise _single(reader.file, 1, 1, "nested too deeply, or an alias holds itself") from error
    if not isinstance(plain, dict):
        raise _single(reader.file, 1, 1, f"expected a mapping with `version` and `guests`, got {type(plain).__name__}")
    return plain


def _single(file: str, line: int, column: int, message: str) -> TopologyError:
    return TopologyError((Problem(file=file, line=line, column=column, path="", message=message),))


def _dotted(where: Where) -> str:
    return ".".join(str(part) for part in where)


def _keys(where: Where) -> list[str]:
    """Keys that are known in the mapping that `where` stands in."""
    models: dict[int, type[BaseModel]] = {1: Topology, 3: Guest, 5: Loop if "loops" in where else Disk, 6: Limits}
    model = models.get(len(where))
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _message(error: ErrorDetails, where: Where) -> str:
    got = error.get("input")
    match error["type"]:
        case "extra_forbidden":
            keys = _keys(where)
            near = difflib.get_close_matches(str(where[-1]), keys, n=1)
            return "unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(keys)}" if keys else "")
        case "missing":
            return "expected this key, it is missing"
        case "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
        case "string_pattern_mismatch" if "[key]" in error["loc"]:
            return f"expected a name of lower-case letters, digits and dashes, at most 16, got {got!r}"
        case "string_pattern_mismatch":
            return f"expected NAME/FILE such as data/disk.img, got {got!r}"
        case "literal_error":
            return f"expected {error['ctx']['expected']}, got {got!r}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"expected a mapping, got {got!r}"
        case "bool_type":
            return f"expected true or false, got {got!r}"
    return f"{error['msg'][:1].lower()}{error['msg'][1:].replace('Input should', 'should')}, got {got!r}"
