"""Answers of probes, kept in the cache by what they depend on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from testbed.text import parse_json


def load_answer(path: Path) -> dict[str, Any] | None:
    """The answer in a file; None where there is none, or none that can be read."""
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def save_answer(path: Path, record: dict[str, Any]) -> None:
    """Put an answer in its place, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this process alone, and the next one of its number writes over what it leaves.
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(record), encoding="utf-8")
    new.replace(path)
