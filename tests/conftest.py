"""Marks tests under tests/guest, which start real guests; other tests start none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

GUEST = Path(__file__).parent / "guest"
# Another project's suite: tests/guest/api/test_foreign.py runs it from the built wheel.
collect_ignore = ["examples"]
# Its database names paths of this machine, and does not belong into the tree.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"testbed-hypothesis-{os.getuid()}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if GUEST in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(7200 if item.get_closest_marker("kernels") else 900))
        else:
            item.add_marker(pytest.mark.timeout(60))
