"""The table of wrong answers names, for each, tests that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests" / "answers.yaml").read_text())


def test_each_wrong_answer_stands_once() -> None:
    lines = [row["line"] for row in ROWS]
    assert len(set(lines)) == len(lines) > 25


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["line"])
def test_each_wrong_answer_is_held_by_tests_that_are_there(row: dict[str, Any]) -> None:
    assert set(row) == {"line", "kind", "guest", "tests"} and row["tests"]
    for named in row["tests"]:
        file, _, test = named.partition("::")
        assert re.search(rf"^ *(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"
    if row["guest"]:
        assert any(named.startswith("tests/guest/") for named in row["tests"]), "a real guest is a part of it"
