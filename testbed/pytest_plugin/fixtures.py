"""Fixtures. None of them is a coroutine: they wait for work in the testbed's own thread, whatever the test's
event loop is.
"""

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
    folder = config.getoption("testbed_artifacts")
    return temporary.getbasetemp() / "testbed" if folder is None else config.invocation_params.dir / folder


@pytest.fixture(scope="session")
def testbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """The testbed: host facts, guest image, kernels, templates. Each is made once for all sessions and workers."""
    from testbed.pytest_plugin.guests import testbed_errors_as_failures

    state = request.config.stash[STATE]
    with testbed_errors_as_failures():
        opened = state.open(_artifacts(request.config, tmp_path_factory))
    yield opened
    state.close()


@pytest.fixture
def _testbed_kernel(request: pytest.FixtureRequest) -> str:
    """The kernel of this variant of the test."""
    return str(getattr(request, "param", "") or request.config.stash[STATE].table.patched)


@pytest.fixture
def _testbed_point(request: pytest.FixtureRequest) -> str:
    """The point of the topology's matrix."""
    return str(getattr(request, "param", ""))


@pytest.fixture
def topology(request: pytest.FixtureRequest, _testbed_point: str) -> Topology:
    """The topology of the test's guests: from its marker `testbed_topology`, from --testbed-topology, or from a file in
    its folder with the name of its module, or topology.yaml. A suite may override this fixture; its own may return a
    path, YAML or a mapping.
    """
    from testbed.pytest_plugin import markers

    topologies = markers.points(request.node).topologies
    return topologies[_testbed_point] if _testbed_point in topologies else next(iter(topologies.values()))


@pytest.fixture
def _testbed_guests(
    request: pytest.FixtureRequest, testbed: Testbed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guests]:
    """The guests of this test."""
    from testbed.pytest_plugin.guests import Guests, testbed_errors_as_failures

    artifacts = _artifacts(request.config, tmp_path_factory)
    guests = Guests(request.node, request.config.stash[STATE], testbed, artifacts)
    request.node.stash[GUESTS] = guests
    yield guests
    del request.node.stash[GUESTS]
    with testbed_errors_as_failures():
        guests.close()


def _as_topology(request: pytest.FixtureRequest, topology: Any) -> Topology:
    from testbed.api import topologies
    from testbed.pytest_plugin.guests import testbed_errors_as_failures

    with testbed_errors_as_failures():
        return topologies.resolve_point(topology, request.node.path.parent, "fixture topology", None)


@pytest.fixture
def vms(
    request: pytest.FixtureRequest, _testbed_guests: Guests, topology: Topology, _testbed_kernel: str
) -> dict[str, Vm]:
    """All guests of the test's topology, by name: new clones with their stacks, removed after the test."""
    resolved = _as_topology(request, topology)
    # Checked before guests are started for nothing.
    if len(resolved.guests) != 1 and "vm" in request.fixturenames:
        pytest.fail(
            f"testbed: `vm` expects a topology of one guest, this one has {', '.join(resolved.guests)}: take `vms`",
            pytrace=False,
        )
    return _testbed_guests.start(resolved, _testbed_kernel)


@pytest.fixture
def vm(vms: dict[str, Vm]) -> Vm:
    """The only guest of the test's topology: a new clone with its stack, removed after the test. `await
    vm.run("uname -r")`
    """
    return next(iter(vms.values()))


@pytest.fixture
def qmp(vm: Vm) -> Qmp:
    """QEMU's monitor of `vm`. `await qmp.execute("query-status")`"""
    return vm.qmp


@pytest.fixture
def hardware(vm: Vm) -> Hardware:
    """Changes the emulated disks of `vm`. `await hardware.throttle("data", "hdd-7200")`"""
    return vm.hardware


@pytest.fixture
def cgroup(vm: Vm) -> CgroupMaker:
    """Makes control groups in `vm`. `async with cgroup("a", {"memory.max": "64M"}) as a: await a.run("...")`"""
    return vm.cgroup


@pytest.fixture
def compare(request: pytest.FixtureRequest, testbed: Testbed, topology: Topology, _testbed_guests: Guests) -> Compare:
    """Runs the same steps on a guest with the base kernel and on one with the patched kernel.

    async def steps(vm): ...
    result = await compare(steps)
    result.expect("bytes charged", base=0, patched=lambda charged: charged > 0)
    """
    from testbed.api import compare as comparing
    from testbed.api import testbed as opened
    from testbed.pytest_plugin import markers
    from testbed.pytest_plugin.guests import testbed_errors_as_failures

    named = markers.kernels(request.node)
    kernels = {"base": named.base or testbed.base, "patched": named.patched or testbed.patched}
    with testbed_errors_as_failures():
        only = opened.only_guest(_as_topology(request, topology))

    async def run(body: Callable[[Vm], Awaitable[T]]) -> Comparison[T]:
        __tracebackhide__ = True
        with testbed_errors_as_failures():
            sides = await _testbed_guests.sides(only, kernels)
        return await comparing.compare_sides(body, sides, side_by_side=testbed.host.cores >= len(sides))

    return run
