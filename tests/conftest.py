"""Tests under tests/guest start real guests; every other one starts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

GUEST = Path(__file__).parent / "guest"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if GUEST in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(900))
        else:
            item.add_marker(pytest.mark.timeout(60))
