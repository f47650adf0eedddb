"""Caches answers of probes, in files named by everything that the answer depends on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from testbed.text import parse_json


def load_answer(path: Path) -> dict[str, Any] | None:
    """Read a cached answer; None if there is none, or it cannot be read."""
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def save_answer(path: Path, record: dict[str, Any]) -> None:
    """Write an answer atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # No other process has this name; a leftover is overwritten by the next process with this pid.
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(record), encoding="utf-8")
    new.replace(path)
