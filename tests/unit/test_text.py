"""Strict JSON: what any reader of JSON takes alike, and nothing that a later step cannot hold."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.text import parse_json

PACKAGE = Path(__file__).parents[2] / "testbed"


def test_valid_json_is_parsed() -> None:
    text = '{"a": [1, -2, 2.5e3, true, null, "\\u00e9"], "b": {"a": 18446744073709551615}}'
    wanted = {"a": [1, -2, 2500.0, True, None, "é"], "b": {"a": (1 << 64) - 1}}
    assert parse_json(text) == parse_json(text.encode()) == parse_json(bytearray(text.encode())) == wanted
    assert parse_json("[" * 64 + "]" * 64)


REFUSED = {
    "not a number": ("[NaN]", "finite number, got NaN"),
    "infinity": ('{"seed": Infinity}', "finite number, got Infinity"),
    "minus infinity": ("-Infinity", "finite number, got -Infinity"),
    "a fraction without end": ("[1e999]", "finite number, got 1e999"),
    "a fraction of many digits": (f"0.{'1' * 1000}", "finite number"),
    "more than 64 bits": ("18446744073709551616", "at most 64 bits"),
    "less than 64 bits": ("-9223372036854775809", "at most 64 bits"),
    "5,000 digits": ("1" * 5000, "at most 64 bits"),
    "a key twice": ('{"a": {"seed": 1, "b": 2, "seed": 3}}', "each key once, got 'seed' twice"),
    "65 levels of lists": ("[" * 65 + "]" * 65, "at most 64 levels"),
    "65 levels of mappings": ('{"a":' * 65 + "1" + "}" * 65, "at most 64 levels"),
    "100,000 levels": ("[" * 100_000, "at most 64 levels"),
    "two values": ("1 2", "Extra data"),
    "no UTF-8": (b'"\xff"', "utf-8"),
    "half a character": (b'"\xed\xa0\x80"', "utf-8"),
}


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED)
def test_ambiguous_and_oversized_json_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)


@given(st.one_of(st.text(), st.binary(), st.text(alphabet='{}[]:,"0123456789eE.-NaInfity ', max_size=40)))
def test_any_text_is_parsed_or_refused(text: str | bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_json(text)


def test_json_is_parsed_in_one_place() -> None:
    """Python's own reader takes NaN, keys twice, numbers without end; so does pydantic's."""
    for path in PACKAGE.rglob("*.py"):
        if path.name in (
            "text.py",
            "build_jail_exec.py",
        ):  # that one imports nothing of ours, and reads its own command line
            continue
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        assert {node.attr for node in nodes}.isdisjoint({"validate_json", "model_validate_json"}), path
        of_json = {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "json"}
        assert of_json <= {"dumps", "dump"}, path
