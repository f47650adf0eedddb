"""The launch of VMs: shared quotas, and what a failed launch leaves."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from testbed.errors import HostError
from testbed.guest.metrics import disk_speed
from testbed.host import paths
from testbed.host.paths import Folders
from testbed.host.registry import VmHandle
from testbed.progress import Silent
from testbed.topology.model import Topology
from testbed.vms import launcher, supervisor
from testbed.vms.launcher import GuestRequest, LaunchRequest
from testbed.vms.prefork import PreforkedWorker
from testbed.vms.supervisor import VmSpec


async def test_guests_that_are_started_together_share_what_a_run_may_take(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two supervisors opens a lab with half of it."""
    shares = list[int]()

    async def supervised(specs: list[VmSpec], *others: object) -> tuple[VmHandle, ...]:
        for spec in specs:
            await supervisor.supervise(VmSpec.from_json(spec.to_json()), lambda said: None)
        return ()

    @contextlib.asynccontextmanager
    async def opened(*_: object, sharing: int = 1, **others: object) -> AsyncIterator[Any]:
        shares.append(sharing)
        if len(shares) > 1:  # a supervisor's
            raise HostError("here it ends")
        yield AsyncMock(folders=folders)

    monkeypatch.setattr(launcher, "launch_vms", supervised)
    monkeypatch.setattr(disk_speed, "too_fast_profiles", lambda *_: ())
    monkeypatch.setattr(disk_speed, "load", lambda *_: None)
    for module in (launcher, supervisor):
        monkeypatch.setattr(module, "open_factory", opened)
    monkeypatch.setattr(paths, "folders", lambda: folders)
    names = ("a", "b")
    request = LaunchRequest(
        topology=Topology.model_validate({"version": 1, "guests": {name: {} for name in names}}),
        file=tmp_path / "x.yaml",
        point="",
        guests=tuple(GuestRequest(guest=name, name=name, kernel="debian-6.1", logs=tmp_path) for name in names),
    )
    await launcher.start_vms(request, folders, Silent(), ())
    assert shares == [1, 2, 2]


async def test_guests_that_do_not_get_ready_leave_no_network(folders: Folders, tmp_path: Path) -> None:
    network = folders.runtime / "net-1"
    network.mkdir()
    spec = VmSpec(
        name="g0",
        topology={},
        file="x.yaml",
        point="",
        guest="g0",
        kernel="debian-6.1",
        networks=str(network),
        evidence=str(tmp_path / "e"),
        cold=False,
    )
    supervising = await asyncio.create_subprocess_exec("sleep", "600")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(HostError, match="g0: its supervisor ended before it was ready"):
            await launcher.launch_vms([spec], (PreforkedWorker(pid=supervising.pid, socket=ours),), folders, Silent())
    assert not network.exists()
