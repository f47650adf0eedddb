"""Base of all models of topology files: strict and frozen, keys with dashes, sizes and durations with units."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from testbed.units import format_duration, parse_duration, parse_size


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Model(BaseModel):
    """A mapping of the file. Unknown keys are refused, and no value is converted unless its type says so.

    A key has one name, the one in the file; Python's name of the field (with underscores) is not accepted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=_kebab)


SIZE_PATTERN = r"^\d+\s*([KMGT](iB)?|B)?$"
_SIZE_SCHEMA: dict[str, Any] = {
    "oneOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": SIZE_PATTERN}],
    "description": "bytes, or a number with K, M, G or T (powers of 1024)",
}
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0), WithJsonSchema(_SIZE_SCHEMA)]
Rate = Annotated[int, BeforeValidator(parse_size), Field(ge=0), WithJsonSchema(_SIZE_SCHEMA)]
DURATION_PATTERN = r"^\d+(\.\d{1,6})?\s*(us|ms|s|min)$"
_DURATION_SCHEMA: dict[str, Any] = {
    "oneOf": [{"const": 0}, {"type": "string", "pattern": DURATION_PATTERN}],
    "description": "a number with us, ms, s or min",
}
_LONGEST_US = 600_000_000


def _duration(value: Any) -> int:
    """:raise ValueError: the value is no duration, or too long."""
    duration_us = parse_duration(value)
    if duration_us > _LONGEST_US:
        raise ValueError(f"expected at most {format_duration(_LONGEST_US)}, got {value!r}")
    return duration_us


# In microseconds.
Duration = Annotated[
    int,
    BeforeValidator(_duration),
    Field(ge=0),
    WithJsonSchema(_DURATION_SCHEMA),
    PlainSerializer(lambda microseconds: f"{microseconds}us", when_used="json"),
]
# The serial of a disk is its name after "tb-"; serials have at most 20 characters.
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,15}$")]
# Text that may be put into an option or a command line: printable, and of bounded length.
PrintableText = Annotated[str, Field(pattern=r"^[\x20-\x7e]{1,200}$")]

T = TypeVar("T")
# The keys, and numbers in lists, that lead to a value of a file.
KeyPath = tuple[str | int, ...]


def _whole(value: Any) -> Any:
    """Refuse true and 1.0, which equal 1 in Python.

    :raise ValueError: the value is a boolean or a float.
    """
    if isinstance(value, bool | float):
        raise ValueError(f"expected 1, got {str(value).lower()}")
    return value


# The version of the file format; there is only one.
Version = Annotated[Literal[1], BeforeValidator(_whole)]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


TupleOf = Annotated[tuple[T, ...], BeforeValidator(_tuple)]
