"""Fixtures that several attacks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.run_folders import SECRET


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create the folder of a run with the logs of one guest."""
    made = tmp_path / "runs" / "20260101T000000Z-abcd"
    (made / "guests" / "g").mkdir(parents=True)
    return made


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Create a file outside of the run's folder, which must be neither read nor written."""
    file = tmp_path / "precious"
    file.write_text(SECRET)
    return file
