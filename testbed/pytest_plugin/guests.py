"""The guests of one test: started for it, described when it fails, gone or kept when it ends."""

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
    """`artifacts`: the folder that holds a folder for each test."""

    def __init__(self, item: pytest.Item, state: PluginState, testbed: Testbed, artifacts: Path) -> None:
        assert state.background is not None
        self._item, self._state, self._testbed = item, state, testbed
        self._background: ThreadLoop = state.background
        self._stack, self._compared = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
        self._folder = _new_folder(artifacts, item.nodeid)
        self._vms: dict[str, Vm] = {}
        self._starts = 0
        self.lost_at_start: str = ""

    # Starting ------------------------------------------------------------------------------------------------------------------

    def start(self, topology: Topology, kernel: str) -> dict[str, Vm]:
        """All guests of a topology.

        :raise pytest.fail.Exception: they do not get ready. :raise pytest.skip.Exception: they lack what the test requires.
        """
        self._skip_if_known(kernel)
        with why_refused():
            found = self._background.wait(self._start(topology, kernel))
            for vm in found.values():
                self._background.wait(self._skip_if_missing(vm, kernel))
        return found

    async def _start(self, topology: Topology, kernel: str) -> dict[str, Vm]:
        found = await self._stack.enter_async_context(self._one(topology, kernel, self._next_folder()))
        self._vms |= found
        await self._tell({"": kernel})
        return found

    @contextlib.asynccontextmanager
    async def _one(self, topology: Topology, kernel: str, folder: Path) -> AsyncIterator[dict[str, Vm]]:
        async with (
            self._testbed.admitted(topology, self._item.nodeid, at_once=bool(self._vms)),
            self._testbed.started(topology, kernel, folder) as found,
        ):
            yield found

    async def sides(self, topology: Topology, kernels: Mapping[str, str]) -> dict[str, Vm]:
        """The only guest of a topology on each kernel; those of an earlier comparison end first. Called from the test's event loop.

        :raise TestbedError: they do not get ready. :raise pytest.skip.Exception: one lacks what the test requires.
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
        found = await self._compared.enter_async_context(self._testbed.sides(topology, kernels, self._next_folder()))
        self._vms |= found
        await self._tell(kernels)
        for side, vm in found.items():
            await self._skip_if_missing(vm, kernels[side])
        return found

    def _next_folder(self) -> Path:
        self._starts += 1
        return self._folder if self._starts == 1 else self._folder / f"start-{self._starts}"

    # What the test requires ----------------------------------------------------------------------------------------------------

    def _skip_if_known(self, kernel: str) -> None:
        wanted = markers.needs(self._item)
        host = self._testbed.host.qemu
        why = self._state.lacking.get((kernel, wanted)) or requirements.lacking_version(wanted.qemu, host.version)
        if why:
            pytest.skip(why)

    async def _skip_if_missing(self, vm: Vm, kernel: str) -> None:
        wanted = markers.needs(self._item)
        if not wanted:
            return
        files = await self._testbed.kernel(vm.kernel)
        config = files.config.read_text(encoding="utf-8") if files.config is not None else None
        missing = await requirements.missing_requirement(
            vm, wanted.module, wanted.config, wanted.tool, wanted.qemu, config
        )
        if missing:
            why = f"{vm.kernel} ({vm.release}) lacks {', '.join(missing)}"
            self._state.lacking[kernel, wanted] = why
            pytest.skip(why)

    # Telling -------------------------------------------------------------------------------------------------------------------

    async def _tell(self, kernels: Mapping[str, str]) -> None:
        """What the test ran on, for junit.xml and whoever else reads a report's properties."""
        testbed = self._testbed
        told = {
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
            told |= {name: files.release, f"{name}_sha256": files.sha256}
        there = dict(self._item.user_properties)
        self._item.user_properties += [(name, value) for name, value in told.items() if name not in there]

    def failed(self, when: str) -> list[tuple[str, str]]:
        """Sections of the report of a failed test: a section for each guest."""
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
def why_refused() -> Iterator[None]:
    """Errors of the testbed as failures without a traceback: what they say is all that there is to say."""
    try:
        yield
        return
    except ToolMissing as error:
        from testbed.host import process

        missing = [tool for tool, where in process.find_all().items() if where == "missing"]
        packages = " ".join(dict.fromkeys((error.package, *(process.PACKAGES[tool] for tool in missing))))
        said = f"this machine lacks {', '.join(missing) or error.tool}; as root: apt-get install {packages}"
    except TestbedError as error:
        said = str(error)
    except ExceptionGroup as group:
        # Of guests that are started side by side.
        ours = group.subgroup(TestbedError)
        if ours is None:
            raise
        said = str(first_error(ours))
    raise pytest.fail.Exception(f"testbed: {said}", pytrace=False) from None


def _new_folder(artifacts: Path, nodeid: str) -> Path:
    """A new folder that is called like the test."""
    name = re.sub(r"[^A-Za-z0-9._=+-]+", "-", nodeid.replace(".py::", "-").replace("::", "-")).strip("-")
    name = name if len(name) <= _LONGEST_NAME else name[-_LONGEST_NAME:].lstrip("-")
    folder, number = artifacts / name, 1
    while folder.exists():
        number += 1
        folder = artifacts / f"{name}.{number}"
    return folder
