from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testbed.guest.factory import GuestFactory, open_factory
from testbed.host import paths
from testbed.progress import Silent
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel, load


class Notes(Silent):
    """Keeps the remarks that a face would print."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def factory(notes: Notes) -> AsyncIterator[GuestFactory]:
    """A lab over the user's own caches: templates are shared by all tests and all workers."""
    async with open_factory(notes, kernels=("debian-6.1",)) as opened:
        yield opened


@pytest.fixture
async def kernel(factory: GuestFactory) -> KernelFiles:
    return await factory.kernel("debian-6.1")


@pytest.fixture(scope="session")
def model() -> GuestModel:
    """The guest of the default topology."""
    return load(paths.shipped("topologies") / "default.yaml").guests["g0"]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "evidence"
