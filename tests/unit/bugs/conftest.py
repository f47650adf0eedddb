"""Fixtures of the tests of bugs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.bundles import BUG, RESULTS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "r1"
    (folder / "guests" / "debian-6.1-1").mkdir(parents=True)
    (folder / "bug.yaml").write_text(BUG)
    (folder / "repro.json").write_text(json.dumps(RESULTS))
    (folder / "guests" / "debian-6.1-1" / "console.log").write_text("hello\n")
    (folder / "guests" / "debian-6.1-1" / "vmcore").write_text("secret")
    return folder
