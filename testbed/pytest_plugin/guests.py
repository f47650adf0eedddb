"""Starts the guests of one test, describes them if it fails, and ends or keeps them afterwards."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from testbed.api import Testbed, Vm
from testbed.api.event_loops import ThreadLoop
from testbed.errors import TestbedError, ToolMissing, first_error
from testbed.pytest_plugin import failure_report, markers, requirements
from testbed.pytest_plugin.session import PluginState
from testbed.topology import Topology

_LONGEST_NAME = 120


class Guests:
    """The guests of one test. `artifacts`: a folder with one folder for each test."""

    def __init__(self, item: pytest.Item, state: PluginState, testbed: Testbed, artifacts: Path) -> None:
        assert state.background is not None
        self._item, self._state, self._testbed = item, state, testbed
        self._background: ThreadLoop = state.background
        self._stack, self._compared = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
        self._folder = _new_folder(artifacts, item.nodeid)
        self._vms: dict[str, Vm] = {}
        self._starts = 0

    # Start -----------------------------------------------------------------------------------------------

    def start(self, topology: Topology, kernel: str) -> dict[str, Vm]:
        """Start all guests of a topology.

        :raise pytest.fail.Exception: they do not become ready. :raise pytest.skip.Exception: they lack what the test
        requires.
        """
        self._skip_if_known(kernel)
        with testbed_errors_as_failures():
            vms = self._background.wait(self._start(topology, kernel))
            for vm in vms.values():
                self._background.wait(self._skip_if_missing(vm, kernel))
        return vms

    async def _start(self, topology: Topology, kernel: str) -> dict[str, Vm]:
        vms = await self._stack.enter_async_context(self._started(topology, kernel, self._next_folder()))
        self._vms |= vms
        await self._record_properties({"": kernel})
        return vms

    @contextlib.asynccontextmanager
    async def _started(self, topology: Topology, kernel: str, folder: Path) -> AsyncIterator[dict[str, Vm]]:
        async with (
            self._testbed.admitted(topology, self._item.nodeid, at_once=bool(self._vms)),
            self._testbed.started(topology, kernel, folder) as vms,
        ):
            yield vms

    async def sides(self, topology: Topology, kernels: Mapping[str, str]) -> dict[str, Vm]:
        """Start the only guest of a topology on each kernel; those of an earlier comparison end first. Called from the
        test's event loop.

        :raise TestbedError: they do not become ready. :raise pytest.skip.Exception: one lacks what the test requires.
        """
        for kernel in kernels.values():
            self._skip_if_known(kernel)
        return await self._background.do(self._sides(topology, kernels))

    async def _sides(self, topology: Topology, kernels: Mapping[str, str]) -> dict[str, Vm]:
        await self._compared.aclose()
        self._vms = {name: vm for name, vm in self._vms.items() if name not in kernels}
        await self._compared.enter_async_context(
            self._testbed.admitted(topology, self._item.nodeid, times=len(kernels), at_once=bool(self._vms))
        )
        vms = await self._compared.enter_async_context(self._testbed.sides(topology, kernels, self._next_folder()))
        self._vms |= vms
        await self._record_properties(kernels)
        for side, vm in vms.items():
            await self._skip_if_missing(vm, kernels[side])
        return vms

    def _next_folder(self) -> Path:
        self._starts += 1
        return self._folder if self._starts == 1 else self._folder / f"start-{self._starts}"

    # Requirements ----------------------------------------------------------------------------------------

    def _skip_if_known(self, kernel: str) -> None:
        needs = markers.needs(self._item)
        version = self._testbed.host.qemu.version
        why = self._state.lacking.get((kernel, needs)) or requirements.lacking_version(needs.qemu, version)
        if why:
            pytest.skip(why)

    async def _skip_if_missing(self, vm: Vm, kernel: str) -> None:
        needs = markers.needs(self._item)
        if not needs:
            return
        files = await self._testbed.kernel(vm.kernel)
        config = files.config.read_text(encoding="utf-8") if files.config is not None else None
        missing = await requirements.missing_requirement(vm, needs.module, needs.config, needs.tool, needs.qemu, config)
        if missing:
            why = f"{vm.kernel} ({vm.release}) lacks {', '.join(missing)}"
            self._state.lacking[kernel, needs] = why
            pytest.skip(why)

    # Reports ---------------------------------------------------------------------------------------------

    async def _record_properties(self, kernels: Mapping[str, str]) -> None:
        """Record what the test ran on as properties of its report, which junit.xml has too."""
        testbed = self._testbed
        properties = {
            "testbed_qemu": testbed.host.qemu.version,
            "testbed_qemu_sha256": testbed.qemu_sha256(),
            "testbed_accelerator": testbed.host.accelerator,
            "testbed_image": testbed.image.name,
            "testbed_image_sha256": testbed.image.sha256,
            "testbed_artifacts": str(self._folder),
        }
        for side, kernel in kernels.items():
            files = await testbed.kernel(kernel)
            name = f"testbed_kernel_{side}" if side else "testbed_kernel"
            properties |= {name: files.release, f"{name}_sha256": files.sha256}
        known = dict(self._item.user_properties)
        self._item.user_properties += [(name, value) for name, value in properties.items() if name not in known]

    def failed(self, when: str) -> list[tuple[str, str]]:
        """Return the sections of the report of a failed test, one for each guest."""
        if not self._vms:
            logs = sorted(self._folder.rglob("console.log")) if when == "setup" else []
            return [("testbed", f"logs: {self._folder}")] if logs else []
        with contextlib.suppress(TestbedError):
            return [
                (
                    f"testbed: guest {name}",
                    self._background.wait(failure_report.describe(vm, self._testbed.host.qemu.version)),
                )
                for name, vm in self._vms.items()
            ]
        return []

    def close(self) -> None:
        """End all guests."""
        self._background.wait(self._close())

    async def _close(self) -> None:
        try:
            await self._compared.aclose()
        finally:
            await self._stack.aclose()


@contextlib.contextmanager
def testbed_errors_as_failures() -> Iterator[None]:
    """Turn errors of the testbed into test failures without a traceback: their messages are sufficient."""
    try:
        yield
        return
    except ToolMissing as error:
        from testbed.host import process

        missing = [tool for tool, where in process.find_all().items() if where == "missing"]
        packages = " ".join(dict.fromkeys((error.package, *(process.PACKAGES[tool] for tool in missing))))
        message = f"this machine lacks {', '.join(missing) or error.tool}; as root: apt-get install {packages}"
    except TestbedError as error:
        message = str(error)
    except ExceptionGroup as group:
        # Guests are started concurrently.
        ours = group.subgroup(TestbedError)
        if ours is None:
            raise
        message = str(first_error(ours))
    raise pytest.fail.Exception(f"testbed: {message}", pytrace=False) from None


def _new_folder(artifacts: Path, nodeid: str) -> Path:
    """Return the name of a new folder for the logs of a test."""
    name = re.sub(r"[^A-Za-z0-9._=+-]+", "-", nodeid.replace(".py::", "-").replace("::", "-")).strip("-")
    name = name if len(name) <= _LONGEST_NAME else name[-_LONGEST_NAME:].lstrip("-")
    folder, number = artifacts / name, 1
    while folder.exists():
        number += 1
        folder = artifacts / f"{name}.{number}"
    return folder
