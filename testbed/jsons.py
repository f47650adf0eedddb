"""Strict JSON: the one place where JSON is read, since all of it may be somebody else's, and Python's reader takes what no standard has."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from testbed.text import printable

_DEEPEST = 64
# Lists, objects and their parts, each of which takes about 100 bytes of memory.
_MOST_VALUES = 2_000_000
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_LONGEST_FRACTION = 100


def parsed(text: str | bytes | bytearray) -> Any:
    """Return what a text says: strings, finite numbers, whole ones of at most 64 bits, and lists and mappings of at most 64 levels.

    :raise ValueError: it is no JSON in UTF-8, says a key twice, holds another number (NaN, Infinity, 1e999), or is nested more deeply.
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


def mapping(text: str | bytes | bytearray) -> dict[str, Any]:
    """Return the mapping that a text says.

    :raise ValueError: as `parsed`, or it is none.
    """
    found = parsed(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a mapping, got {type(found).__name__}")
    return found


def printed(data: bytes) -> Any:
    """Return what a stranger's file says, each text and key in it as `printable` leaves it, and without halves of characters.

    :raise ValueError: as `parsed`, or it has too many values.
    """
    # Commas in texts count as well: they are few beside the others.
    if (many := sum(map(data.count, (b",", b"[", b"{")))) > _MOST_VALUES:
        raise ValueError(f"it has about {many} values, expected at most {_MOST_VALUES}")
    return _printed(parsed(data))


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


_DECODER = json.JSONDecoder(object_pairs_hook=_mapping, parse_int=_whole, parse_float=_fraction, parse_constant=_no_number)
