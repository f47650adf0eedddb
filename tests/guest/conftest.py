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
    """Keeps the notes that the command line would print."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def factory(notes: Notes) -> AsyncIterator[GuestFactory]:
    """Open a factory over the user's own cache: all tests and all workers share its templates."""
    async with open_factory(notes, kernels=("debian-6.1",)) as opened:
        yield opened


@pytest.fixture
async def kernel(factory: GuestFactory) -> KernelFiles:
    return await factory.kernel("debian-6.1")


@pytest.fixture(scope="session")
def model() -> GuestModel:
    """Return the guest of the default topology."""
    return load(paths.shipped("topologies") / "default.yaml").guests["g0"]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "evidence"
