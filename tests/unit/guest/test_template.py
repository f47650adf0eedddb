"""A template whose guest found a wrong frequency for its clock is made again; a state that cannot be saved says why."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import AsyncMock

import pytest

from testbed.errors import GuestError, HostError
from testbed.guest import template
from testbed.guest.clock import Clock
from testbed.guest.guest import Guest
from testbed.host import quota
from testbed.progress import Silent
from testbed.qemu import migration
from testbed.qemu.command_line import Memory


@pytest.mark.parametrize("wrong", [0, 2, 4])
async def test_a_guest_whose_clock_is_wrong_is_booted_again(
    wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots, asked = [], []

    @asynccontextmanager
    async def boot(memory: Memory) -> AsyncIterator[Guest]:
        assert memory.file is not None and not memory.file.exists()
        memory.file.write_bytes(b"ram")
        boots.append(memory)
        yield cast(Guest, guest)

    async def nothing(*_: object) -> None:
        pass

    async def waited(awaited: Awaitable[None], limit_s: float) -> None:
        await awaited
        (tmp_path / "state").write_bytes(b"state")

    async def read(_: object) -> Clock:
        asked.append(1)
        # A second of the guest's is 0.13 of ours: between two of our readings, at once, it has gained.
        gained = 20.0 if len(boots) <= wrong and len(asked) % 2 == 0 else 0.0
        return Clock(offset_s=gained, error_s=0.05)

    qmp = SimpleNamespace(execute=nothing)
    deadlines = SimpleNamespace(restore_s=1)
    guest = SimpleNamespace(freeze=nothing, qmp=qmp, monitor=None, wait=waited, deadlines=deadlines, boot_s=9.0)
    monkeypatch.setattr("testbed.guest.clock.read_clock", read)
    monkeypatch.setattr("testbed.guest.template._warm_up", nothing)
    monkeypatch.setattr("testbed.qemu.migration.save_state", nothing)
    with Silent().task("template") as task:
        if wrong == 4:
            with pytest.raises(GuestError, match="expected a clock that goes as ours, got another at 4 boots"):
                await template.save_template(tmp_path, boot, b"key", task)
        else:
            assert (await template.save_template(tmp_path, boot, b"key", task))["boot_s"] == 9.0
            assert len(boots) == wrong + 1


@pytest.mark.parametrize(
    ("said", "room_left", "reason"), [("", True, "no reason"), ("", False, "/x: full"), ("nvme", False, "nvme")]
)
async def test_saving_a_state_on_a_full_disk_is_reported(
    said: str, room_left: bool, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = AsyncMock()
    monitor.execute.return_value = {"status": "failed", **({"error-desc": said} if said else {})}
    monkeypatch.setattr(quota, "full_disk_message", lambda places: None if room_left else "/x: full")
    with pytest.raises(HostError, match=f"expected to save the machine's state, got failed: {reason}$"):
        await migration.save_state(monitor, tmp_path / "state")
