"""pytest plugin for async tests on real guests: fixtures, markers and options. docs/pytest.md is for users.

Every pytest loads it where the testbed is installed: until a test needs a guest, it imports nothing but pytest itself.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from testbed.pytest_plugin.fixtures import (
    _testbed_guests,
    _testbed_kernel,
    _testbed_point,
    cgroup,
    compare,
    hardware,
    qmp,
    testbed,
    topology,
    vm,
    vms,
)
from testbed.pytest_plugin.session import GUESTS, STATE, PluginState

__all__ = [
    "_testbed_guests",
    "_testbed_kernel",
    "_testbed_point",
    "cgroup",
    "compare",
    "hardware",
    "qmp",
    "testbed",
    "topology",
    "vm",
    "vms",
]

_MARKERS = (
    "testbed_topology(topology, *, point=None, **keys): the guests of the test: the path of a YAML file, YAML, or a "
    "mapping; or the keys of one guest, such as disks={...}",
    "testbed_kernels(*kernels, base=None, patched=None): the kernels to run the test on, one after the other; base and "
    "patched are those of `compare`",
    "testbed_requires(*, module=(), config=(), tool=(), qemu=()): what the guest's kernel, its image or QEMU must "
    "have; otherwise the test is skipped",
    "testbed_timeout(seconds): how long the test may take, without the start of its guests",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("testbed", "guests of the testbed")
    add = group.addoption
    add(
        "--testbed-kernel",
        action="append",
        default=[],
        metavar="KERNEL",
        help="Run tests on this kernel, and not on those of their markers; repeatable.",
    )
    add("--testbed-base", metavar="KERNEL", help="The base kernel of `compare`; overrides markers.")
    add("--testbed-patched", metavar="KERNEL", help="The patched kernel of `compare`; overrides markers.")
    add("--testbed-topology", metavar="FILE", help="The topology of tests without a marker.")
    add(
        "--testbed-keep",
        action="store_true",
        help="Keep the guests of failed tests running, and print how to log in.",
    )
    add("--testbed-cold", action="store_true", help="Boot every guest instead of cloning a template.")
    add(
        "--testbed-artifacts",
        metavar="FOLDER",
        help="The folder for guests' logs; pytest's temporary folder by default.",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    config.stash[STATE] = PluginState(config)
    if any(config.getoption(f"testbed_{name}") for name in ("kernel", "base", "patched", "topology", "artifacts")):
        from testbed.pytest_plugin import markers

        markers.check_options(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    state = config.stash.get(STATE, None)
    if state is not None:
        state.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    needed = {"_testbed_point", "_testbed_kernel"} & set(metafunc.fixturenames)
    if needed or any(marker.name.startswith("testbed_") for marker in metafunc.definition.iter_markers()):
        from testbed.pytest_plugin import markers

        markers.parametrize(metafunc)


def pytest_runtest_setup(item: pytest.Item) -> None:
    state = item.config.stash[STATE]
    if state.clock is not None:
        state.clock.release()  # pytest does not report that a post-mortem debugger has ended


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    marker = item.get_closest_marker("testbed_timeout")
    if marker is not None and isinstance(item, pytest.Function):
        from testbed.pytest_plugin import timeout

        timeout.time_limit(item, float(marker.args[0]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    guests = item.stash.get(GUESTS, None)
    if guests is not None and report.failed:
        report.sections += guests.failed(call.when)
    return report


def pytest_enter_pdb(config: pytest.Config, pdb: Any) -> None:
    del pdb
    state = config.stash.get(STATE, None)
    if state is not None and state.clock is not None:
        state.clock.hold()


def pytest_leave_pdb(config: pytest.Config, pdb: Any) -> None:
    del pdb
    state = config.stash.get(STATE, None)
    if state is not None and state.clock is not None:
        state.clock.release()
