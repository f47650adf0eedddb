"""Turns pydantic's errors into messages: what was expected, what was got, and a similar known word."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from testbed.topology.base import KeyPath
from testbed.topology.check import did_you_mean
from testbed.topology.model import Document

_NAME = "a name of lower-case letters, digits and dashes, at most 16"
_MOST_SHOWN = 200
# What a pattern expects, by its first characters.
_PATTERNS = {
    "^[a-z][a-z0-9-]{0,15}$": _NAME,
    "^[a-z][a-z0-9-]{0,19}$": "the name of a device",
    "^[a-z][a-z0-9-]{0,19}/": "NAME/FILE such as data/disk.img",
    "^[a-z][a-z0-9-]{0,19}(/": "NAME/FILE such as data/disk.img, or the name of a device",
    "^(/|": "a path of lower-case names such as tenant or tenant/job, or / for the root",
    "^[A-Za-z0-9._-]": "a serial of at most 20 letters, digits, dots and dashes",
    "^[a-z]+(\\.": "a counter such as memory.current, or memory.stat file",
    r"\.(img": "a disk image, whose name ends with .img, .raw, .qcow2, .iso, .ext4, .xfs, .btrfs or .f2fs",
    r"^[\x20": "at most 200 printable characters",
    "^(max|": "QUOTA or QUOTA PERIOD in microseconds such as 50000 100000, or max",
}


def format_error(error: ErrorDetails, where: KeyPath, plain: Any, document: type[BaseModel] = Document) -> str:
    """Return the message of an error at a place in a file. `plain`: its content; `document`: the model of the file."""
    got = error.get("input")
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key{did_you_mean(str(where[-1]), known_keys(where[:-1], plain, document))}"
        case "missing" | "union_tag_not_found":
            return "expected this key, it is missing"
        case "union_tag_invalid":
            return f"expected {error['ctx']['expected_tags']}, got {error['ctx']['tag']!r}"
        case "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
        case "string_pattern_mismatch":
            pattern = str(error["ctx"]["pattern"])
            words = next(
                (words for begin, words in _PATTERNS.items() if pattern.startswith(begin)), f"text like {pattern}"
            )
            return f"expected {words}, got {_shown(got)}"
        case "literal_error":
            return f"expected {error['ctx']['expected']}, got {_shown(got)}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"expected a mapping, got {_shown(got)}"
        case "tuple_type":
            return f"expected a list, got {_shown(got)}"
        case "string_type":
            return f"expected text, got {_shown(got)}" + ("" if isinstance(got, dict | list) else "; put it in quotes")
        case "too_short" | "string_too_short" if not got:
            return f"expected something, got {_shown(got)}"
        case "bool_type":
            return f"expected true or false, got {_shown(got)}"
        case "int_type" | "int_parsing" | "int_parsing_size" | "int_from_float":
            return f"expected a whole number, got {_shown(got)}"
        case "string_unicode":
            return f"expected text without halves of characters, got {_shown(got)}"
    return f"{error['msg'][:1].lower()}{error['msg'][1:].replace('Input should', 'should')}, got {_shown(got)}"


def _shown(got: Any) -> str:
    """Show the value that was got, or the beginning of a long one."""
    text = repr(got)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def error_place(error: ErrorDetails, plain: Any) -> KeyPath:
    """Find the place of an error in a file with the content `plain`.

    Pydantic's location also has parts that are in no file, for keys, members of a union and tags.
    """
    found: list[str | int] = []
    for part in error["loc"]:
        known: Any = range(len(plain)) if isinstance(plain, list) else plain if isinstance(plain, dict) else ()
        if part in known:
            plain = plain[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue
        found.append(part)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        found.append("type")
    return tuple(found)


def known_keys(where: KeyPath, plain: Any, document: type[BaseModel]) -> list[str]:
    """List the keys that the mapping at a place may have."""
    model: Any = document
    at: Any = plain
    for part in where:
        at = at[part]
        model = _inside(model, part, at)
    return [field.alias or name for name, field in model.model_fields.items()] if _is_model(model) else []


def _is_model(of: Any) -> bool:
    return isinstance(of, type) and issubclass(of, BaseModel)


def _inside(of: Any, part: str | int, plain: Any) -> Any:
    """Return the type of a part of a type; of a union, the member that fits the value `plain`."""
    if _is_model(of):
        found = next(
            (field.annotation for name, field in of.model_fields.items() if part == (field.alias or name)), None
        )
    else:
        found = (
            next(iter(typing.get_args(of)[-1:]), None)
            if typing.get_origin(of) is dict
            else next(iter(typing.get_args(of)), None)
        )
    return _chosen(found, plain)


def _chosen(of: Any, plain: Any) -> Any:
    while typing.get_origin(of) is typing.Annotated:
        of = typing.get_args(of)[0]
    if typing.get_origin(of) not in (typing.Union, types.UnionType):
        return of
    candidates = [_chosen(one, plain) for one in typing.get_args(of)]
    kind = plain.get("type") if isinstance(plain, dict) else None
    tagged = (one for one in candidates if _is_model(one) and "type" in one.model_fields)
    by_tag = next((one for one in tagged if kind in typing.get_args(one.model_fields["type"].annotation)), None)
    return by_tag or next((one for one in candidates if _is_model(one) or typing.get_origin(one) is dict), None)
