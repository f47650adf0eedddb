"""Handles untrusted text: makes it printable, and parses JSON strictly.

All JSON is parsed here: Python's parser accepts what the standard forbids (NaN, duplicate keys, numbers of any length),
and so does pydantic's.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

# Escape sequences, control characters but tab and newline, DEL, the C1 range, and characters that change the text
# direction.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Remove everything that could control a terminal; line breaks stay."""
    return _CONTROL.sub("", text)


# JSON ----------------------------------------------------------------------------------------------------
_DEEPEST = 64
# Lists, objects and their members take about 100 bytes of memory each.
_MOST_VALUES = 2_000_000
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_LONGEST_FRACTION = 100


def parse_json(text: str | bytes | bytearray) -> Any:
    """Parse JSON of strings, finite numbers, integers of at most 64 bits, and lists and mappings of at most 64 levels.

    :raise ValueError: it is not JSON in UTF-8, has a duplicate key or another number (NaN, Infinity, 1e999), or is
    nested deeper.
    """
    try:
        found = _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise _too_deep() from None
    level, depth = _nested([found]), 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise _too_deep()
        level = _nested(inner for one in level for inner in (one.values() if isinstance(one, dict) else one))
    return found


def parse_json_object(text: str | bytes | bytearray) -> dict[str, Any]:
    """Parse JSON whose top level is a mapping.

    :raise ValueError: as `parse_json`, or the top level is something else.
    """
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a mapping, got {type(found).__name__}")
    return found


def parse_printable_json(data: bytes) -> Any:
    """Parse an untrusted JSON file; strings and keys are made `printable`, and lone surrogates are replaced.

    :raise ValueError: as `parse_json`, or it has too many values.
    """
    # Commas within strings are counted too: they are few compared with the others.
    if (many := sum(map(data.count, (b",", b"[", b"{")))) > _MOST_VALUES:
        raise ValueError(f"it has about {many} values, expected at most {_MOST_VALUES}")
    return _printed(parse_json(data))


def _printed(found: Any) -> Any:
    if isinstance(found, str):
        return _LONE_SURROGATES.sub("\ufffd", printable(found))
    if isinstance(found, list):
        return [_printed(one) for one in found]
    if isinstance(found, dict):
        return {_printed(key): _printed(one) for key, one in found.items()}
    return found


def _nested(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [one for one in values if isinstance(one, dict | list)]


def _too_deep() -> ValueError:
    return ValueError(f"expected at most {_DEEPEST} levels of lists and mappings, got more")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        often, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"expected each key once, got {often[:100]!r} twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= (found := int(digits)) < 1 << 64:
        raise ValueError(f"expected a whole number of at most 64 bits, got {digits[:30]}")
    return found


def _fraction(text: str) -> float:
    if len(text) > _LONGEST_FRACTION or not math.isfinite(found := float(text)):
        raise ValueError(f"expected a finite number, got {text[:30]}")
    return found


def _no_number(word: str) -> float:
    raise ValueError(f"expected a finite number, got {word}")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_mapping, parse_int=_whole, parse_float=_fraction, parse_constant=_no_number
)
