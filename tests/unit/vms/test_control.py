"""The sockets of a VM: their modes, errors in replies, and their end."""

import asyncio
import errno
import stat
from typing import Any

import pytest

from testbed.errors import GuestError, GuestLost, HostError
from testbed.host import registry
from testbed.host.control_client import ControlClient
from testbed.host.paths import Folders
from testbed.qemu.frame_switch import SwitchPort
from testbed.vms import control
from tests.support.vm_records import RECORD, Slow


async def test_a_socket_that_is_listened_on_is_its_users_alone(folders: Folders) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.write(b"hello")

    path, outlet = folders.runtime / "control", folders.runtime / "own.out"
    plug = SwitchPort(outlet=outlet, inlet=folders.runtime / "own.in", others=())
    plug.open()
    for _ in range(2):  # the second in the place of what the first has left
        async with control.listen(path, greet):
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.read() == b"hello"
            writer.close()
            assert [stat.S_IMODE(one.stat().st_mode) for one in (path, outlet)] == [0o600, 0o600]
    await plug.close()


async def test_an_error_of_a_supervisor_keeps_its_class(folders: Folders) -> None:
    async def lost(asked: dict[str, Any]) -> dict[str, Any]:
        raise GuestLost("g0", "ready", "it ended")

    with registry.claim_name(folders, "g0") as folder:
        registry.write_record(folder, RECORD)
        async with control.listen(
            folder / "control", lambda reader, writer: control.answer_request("g0", {"lose": lost}, reader, writer)
        ):
            with pytest.raises(GuestLost, match="guest g0: ready: it ended"):
                await ControlClient(registry.find_vm(folders, "g0")).ask("lose")


async def test_an_error_of_this_machine_and_an_end_meanwhile_are_answers(folders: Folders) -> None:
    begun = asyncio.Event()

    async def full(asked: dict[str, Any]) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device", "/state/g0/good")

    async def wait(asked: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        await asyncio.sleep(600)
        return {}

    verbs = {"fill": full, "wait": wait}
    with registry.claim_name(folders, "g0") as folder:
        registry.write_record(folder, RECORD)
        async with control.listen(
            folder / "control", lambda reader, writer: control.answer_request("g0", verbs, reader, writer)
        ):
            there = ControlClient(registry.find_vm(folders, "g0"))
            with pytest.raises(HostError, match="g0: /state/g0/good: No space left on device"):
                await there.ask("fill")
            waiting = asyncio.create_task(there.ask("wait"))
            await begun.wait()
        with pytest.raises(GuestError, match="g0 was ended by another command before this was done"):
            await waiting


async def test_what_is_asked_of_a_socket_ends_with_it(folders: Folders) -> None:
    ended = list[str]()
    slow = Slow(ended)
    async with control.listen(folders.runtime / "control", slow.go_on):
        reader, writer = await asyncio.open_unix_connection(folders.runtime / "control")
        await slow.begun.wait()
    assert ended == ["slow"] and await reader.read() == b""
    writer.close()
