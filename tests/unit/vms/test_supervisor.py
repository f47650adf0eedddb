"""Supervisors that are stopped, and processes that outlive one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from testbed.host import paths, registry
from testbed.host.paths import Folders
from testbed.vms import supervisor
from testbed.vms.supervisor import VmSpec
from tests.support import places
from tests.support.vm_records import RECORD, Slow


async def test_a_supervisor_that_is_stopped_has_ended_its_guest_before_anything_else(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left to the end of the loop may hang it."""
    ended = list[str]()
    slow = Slow(ended)

    @contextlib.asynccontextmanager
    async def opened(*_: object, **others: object) -> AsyncIterator[Any]:
        try:
            yield AsyncMock(kernel=slow.go_on)
        finally:
            ended.append("lab")

    monkeypatch.setattr(supervisor, "open_factory", opened)
    monkeypatch.setattr(paths, "folders", lambda: folders)
    spec = VmSpec(
        name="g0",
        topology={"version": 1, "guests": {"g0": {}}},
        file="x.yaml",
        point="",
        guest="g0",
        kernel="its kernel",
        networks=str(folders.runtime / "net"),
        evidence=str(tmp_path),
        cold=False,
    )
    supervising = asyncio.create_task(supervisor.supervise(spec, lambda said: None))
    await slow.begun.wait()
    supervising.cancel()
    await asyncio.gather(supervising, return_exceptions=True)
    assert ended == ["slow", "lab"]


async def test_what_outlives_its_supervisor_is_a_stray_whatever_the_record_says() -> None:
    """Of the benchmark that kills commands: before another command ends it."""
    with places.made() as own:
        words = ("sh", "-c", "sleep 600 >/dev/null & echo $!; wait")
        keeper = await asyncio.create_subprocess_exec(*words, env=own.env, stdout=asyncio.subprocess.PIPE)
        assert keeper.stdout is not None
        child = int(await keeper.stdout.readline())
        # A process that is becoming another program has no environment for a moment.
        async with asyncio.timeout(60):
            while own.strays().keys() != {keeper.pid, child}:
                await asyncio.sleep(0.01)
        folder = own.runtime / "testbed" / "vms" / "g0"
        folder.mkdir(parents=True)
        registry.write_record(folder, replace(RECORD, supervisor=keeper.pid, state=registry.STARTING))
        assert own.strays().keys() == {keeper.pid, child}
        registry.write_record(folder, replace(RECORD, supervisor=keeper.pid))
        await own.no_strays()
        keeper.kill()
        await keeper.wait()
        assert own.strays().keys() == {child}
        own.end()
