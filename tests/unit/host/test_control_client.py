"""Requests to a supervisor that does not answer."""

import asyncio
import os

import pytest

from testbed.errors import HostError
from testbed.host.control_client import ControlClient
from testbed.host.paths import Folders
from testbed.host.registry import VmHandle
from tests.support.vm_records import RECORD


async def test_a_supervisor_that_does_not_answer_is_named(folders: Folders) -> None:
    ended = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    silent = await asyncio.start_unix_server(say_nothing, folders.runtime / "control")
    async with silent:
        with pytest.raises(HostError, match=rf"g0: its supervisor \(pid {os.getpid()}\) does not answer `status`"):
            await ControlClient(VmHandle(folder=folders.runtime, record=RECORD)).ask("status", timeout_s=0.1)
        await ended.wait()
    with pytest.raises(HostError, match="went away at `status`"):
        await ControlClient(VmHandle(folder=folders.runtime / "nowhere", record=RECORD)).ask("status")
