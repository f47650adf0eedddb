"""The fixtures. None of them is a coroutine: what they wait for is done in the testbed's own thread, whatever event loop the test has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from testbed.pytest_plugin.session import GUESTS, STATE

if TYPE_CHECKING:
    from testbed.api import CgroupMaker, Compare, Comparison, Hardware, Qmp, Testbed, Vm
    from testbed.pytest_plugin.guests import Guests
    from testbed.topology import Topology


T = TypeVar("T")


def _artifacts(config: pytest.Config, temporary: pytest.TempPathFactory) -> Path:
    given = config.getoption("testbed_artifacts")
    return temporary.getbasetemp() / "testbed" if given is None else config.invocation_params.dir / given


@pytest.fixture(scope="session")
def testbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """The testbed: host facts, guest image, kernels, templates; each is made once, however many sessions and workers want it."""
    from testbed.pytest_plugin.guests import why_refused

    state = request.config.stash[STATE]
    with why_refused():
        opened = state.open(_artifacts(request.config, tmp_path_factory))
    yield opened
    state.close()


@pytest.fixture
def _testbed_kernel(request: pytest.FixtureRequest) -> str:
    """The kernel of this variant of the test."""
    return str(getattr(request, "param", "") or request.config.stash[STATE].table.patched)


@pytest.fixture
def _testbed_point(request: pytest.FixtureRequest) -> str:
    """The point of its topology's matrix."""
    return str(getattr(request, "param", ""))


@pytest.fixture
def topology(request: pytest.FixtureRequest, _testbed_point: str) -> Topology:
    """What the test's guests are like: from its marker `testbed_topology`, from --testbed-topology, or from a file beside it, which is
    called like its module or topology.yaml. A suite may override this fixture by one that returns a path, YAML or a mapping.
    """
    from testbed.pytest_plugin import markers

    found = markers.points(request.node).found
    return found[_testbed_point] if _testbed_point in found else next(iter(found.values()))


@pytest.fixture
def _testbed_guests(
    request: pytest.FixtureRequest, testbed: Testbed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guests]:
    """The guests of this test."""
    from testbed.pytest_plugin.guests import Guests, why_refused

    artifacts = _artifacts(request.config, tmp_path_factory)
    guests = Guests(request.node, request.config.stash[STATE], testbed, artifacts)
    request.node.stash[GUESTS] = guests
    yield guests
    del request.node.stash[GUESTS]
    with why_refused():
        guests.close()


def _as_topology(request: pytest.FixtureRequest, topology: Any) -> Topology:
    from testbed.api import topologies
    from testbed.pytest_plugin.guests import why_refused

    with why_refused():
        return topologies.resolve_point(topology, request.node.path.parent, "fixture topology", None)


@pytest.fixture
def vms(
    request: pytest.FixtureRequest, _testbed_guests: Guests, topology: Topology, _testbed_kernel: str
) -> dict[str, Vm]:
    """All guests of the test's topology, by name: fresh clones with their stacks, gone afterwards."""
    wanted = _as_topology(request, topology)
    # Before they are started in vain.
    if len(wanted.guests) != 1 and "vm" in request.fixturenames:
        pytest.fail(
            f"testbed: `vm` expects a topology of one guest, this one has {', '.join(wanted.guests)}: take `vms`",
            pytrace=False,
        )
    return _testbed_guests.start(wanted, _testbed_kernel)


@pytest.fixture
def vm(vms: dict[str, Vm]) -> Vm:
    """The only guest of the test's topology: a fresh clone with its stack, gone afterwards. `await vm.run("uname -r")`"""
    return next(iter(vms.values()))


@pytest.fixture
def qmp(vm: Vm) -> Qmp:
    """QEMU's monitor of `vm`. `await qmp.execute("query-status")`"""
    return vm.qmp


@pytest.fixture
def hardware(vm: Vm) -> Hardware:
    """What the disks of `vm` are made to do. `await hardware.throttle("data", "hdd-7200")`"""
    return vm.hardware


@pytest.fixture
def cgroup(vm: Vm) -> CgroupMaker:
    """Control groups of `vm`. `async with cgroup("a", {"memory.max": "64M"}) as a: await a.run("...")`"""
    return vm.cgroup


@pytest.fixture
def compare(request: pytest.FixtureRequest, testbed: Testbed, topology: Topology, _testbed_guests: Guests) -> Compare:
    """The same steps on a guest of the base kernel and on one of the patched kernel.

    async def steps(vm): ...
    result = await compare(steps)
    result.expect("bytes charged", base=0, patched=lambda charged: charged > 0)
    """
    from testbed.api import compare as comparing
    from testbed.api import testbed as opened
    from testbed.pytest_plugin import markers
    from testbed.pytest_plugin.guests import why_refused

    wanted = markers.kernels(request.node)
    kernels = {"base": wanted.base or testbed.base, "patched": wanted.patched or testbed.patched}
    with why_refused():
        only = opened.only_guest(_as_topology(request, topology))

    async def run(body: Callable[[Vm], Awaitable[T]]) -> Comparison[T]:
        __tracebackhide__ = True
        with why_refused():
            sides = await _testbed_guests.sides(only, kernels)
        return await comparing.compare_sides(body, sides, side_by_side=testbed.host.cores >= len(sides))

    return run
