"""Fixtures of the unit tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.host.paths import Folders


@pytest.fixture
def folders() -> Iterator[Folders]:
    with tempfile.TemporaryDirectory(prefix="tb-") as short:  # sockets have short names
        root = Path(short)
        yield Folders(cache=root, state=root, runtime=root, admission=root)
