"""Checks that the table of wrong answers lists existing tests for each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests" / "answers.yaml").read_text())


def test_each_wrong_answer_is_listed_once() -> None:
    lines = [row["line"] for row in ROWS]
    assert len(set(lines)) == len(lines) > 25


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["line"])
def test_each_wrong_answer_has_existing_tests(row: dict[str, Any]) -> None:
    assert set(row) == {"line", "kind", "guest", "tests"} and row["tests"]
    for named in row["tests"]:
        file, _, test = named.partition("::")
        assert re.search(rf"^ *(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"
    if row["guest"]:
        assert any(named.startswith("tests/guest/") for named in row["tests"]), "a real guest is a part of it"
