from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from testbed import paths
from testbed.lab import Lab, open_lab
from testbed.progress import Silent
from testbed.store.kernel_files import KernelFiles
from testbed.topology import Guest, load


class Notes(Silent):
    """Keeps the remarks that a face would print."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that are marked `alone` run while no other worker has a guest."""
    whole = tmp_path_factory.getbasetemp().parent if hasattr(request.config, "workerinput") else tmp_path_factory.getbasetemp()
    with (whole / "turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def lab(notes: Notes) -> AsyncIterator[Lab]:
    """A lab over the user's own caches: templates are shared by all tests and all workers."""
    async with open_lab(notes, kernels=("debian-6.1",)) as opened:
        yield opened


@pytest.fixture
async def kernel(lab: Lab) -> KernelFiles:
    return await lab.kernel("debian-6.1")


@pytest.fixture(scope="session")
def model() -> Guest:
    """The guest of the default topology."""
    return load(paths.shipped("topologies") / "default.yaml").guests["g0"]


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    return tmp_path / "evidence"
