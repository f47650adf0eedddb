"""Faults of QEMU, of its monitor and of SSH, in guests of this process; see `faults.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import CommandFailed
from testbed.guest import clock, template
from testbed.guest.factory import GuestFactory, open_factory
from testbed.guest.guest import Guest
from testbed.guest.launch_spec import LaunchSpec
from testbed.guest.lifecycle import Event, State
from testbed.guest.liveness import Liveness
from testbed.guest.session import OWNER_VARIABLE
from testbed.hashing import file_sha256
from testbed.qemu import monitor
from testbed.qemu.monitor import Monitor
from testbed.store import cache
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from tests.guest.conftest import Notes
from tests.support.faults import ALIVE, expect
from tests.support.qmp_proxy import Damage, Proxy

SMALL = GuestModel.model_validate({"cpus": 1, "memory": "512M"})
# Logs that are kept once a guest's monitor has answered.
LOGS = ["console.log", "qmp.jsonl"]
At = Callable[[State, Callable[[Guest], None]], None]


@pytest.fixture
async def factory(notes: Notes) -> AsyncIterator[GuestFactory]:
    """Open a factory as for other tests; check afterwards that nothing of its session is left."""
    async with open_factory(notes, kernels=("debian-6.1",)) as opened:
        yield opened
    own = opened._session
    assert not [path for path in (own.sockets, own.scratch, own.scratch.with_name(f"{own.name}.lock")) if path.exists()]


@pytest.fixture
async def at(factory: GuestFactory, kernel: KernelFiles, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> At:
    """Return a function that does something once to a guest that reaches a state, but not to its template's guest."""
    await factory.prepare(SMALL, kernel)
    notes.notes.clear()

    def hurt(state: State, do: Callable[[Guest], None]) -> None:
        real = Liveness.advance

        def advance(self: Liveness, event: Event) -> None:
            real(self, event)
            if self.state is state:
                monkeypatch.setattr(Liveness, "advance", real)
                assert isinstance(self, Guest)
                do(self)

        monkeypatch.setattr(Liveness, "advance", advance)

    return hurt


def nothing_left(factory: GuestFactory, logs: Path) -> None:
    """Check that its guests leave no socket, disk, QEMU or claim on the admission queue, only the last one's logs."""
    reached = stages(logs)
    assert reached[-1] == "STOPPED" and (logs / "argv.txt").read_text()
    assert [name for name in LOGS if (logs / name).exists()] == (LOGS if "MONITORED" in reached else [])
    own = factory._session
    assert not list(own.sockets.iterdir()) and not list(own.scratch.iterdir())
    assert not [
        process
        for process in Path("/proc").glob("[0-9]*")
        if f"{OWNER_VARIABLE}={own.sockets}/".encode() in _environment(process)
    ]
    assert not list(factory.folders.runtime.glob(f"admission/*-{os.getpid()}-*"))


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:  # it has just ended
        return b""


def stages(logs: Path) -> list[str]:
    return [json.loads(line)["state"] for line in (logs / "stages.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("state", ALIVE, ids=lambda state: state.name)
async def test_qemu_is_killed(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, notes: Notes, at: At, state: State
) -> None:
    at(state, lambda guest: os.kill(guest.pid, signal.SIGKILL))
    with expect("kill -9 of QEMU") as met:
        async with factory.guest("g0", SMALL, kernel, logs) as one:
            await one.run("sleep", "600", timeout_s=600)
    assert "QEMU ended with status -9" in str(met.error)
    nothing_left(factory, logs)
    assert stages(logs)[-2] == "LOST" and state.name in stages(logs)
    assert not notes.notes  # its template is not made again


@pytest.mark.parametrize("state", (State.AWAKE, State.READY), ids=lambda state: state.name)
@pytest.mark.parametrize("damage", Damage)
async def test_the_monitor_is_damaged(
    factory: GuestFactory,
    kernel: KernelFiles,
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: At,
    state: State,
    damage: Damage,
) -> None:
    monkeypatch.setattr(monitor, "_COMMAND_S", 2.0)
    real, proxies = Monitor.connect, list[Proxy]()

    async def connect(self: Monitor, socket: Path) -> None:
        proxies.append(await asyncio.to_thread(Proxy, socket))
        await real(self, proxies[-1].path)

    monkeypatch.setattr(Monitor, "connect", connect)
    at(state, lambda guest: proxies[-1].hurt(damage))
    try:
        with expect(damage.value) as met:
            async with factory.guest("g0", SMALL, kernel, logs) as one:
                await one.wait(one.monitor.execute("query-status"), 60)
                await one.wait(
                    one.monitor.execute("query-status"), 60
                )  # half of the first may have been a whole answer
    finally:
        for proxy in proxies:
            proxy.close()
    said = "expected an answer to" if damage in (Damage.MUTE, Damage.HALF) else "QEMU closed its monitor"
    assert said in str(met.error)
    nothing_left(factory, logs)
    assert state.name in stages(logs)


async def test_ssh_is_dropped_in_a_command(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    async with factory.guest("g0", SMALL, kernel, logs) as one:
        with expect("SSH dropped in a command") as met:
            await one.script("kill -9 $PPID; sleep 600", timeout_s=600)
        assert "SSH connection broke" in str(met.error)
        assert (await one.run("hostname")).stdout == "g0\n"
        # A command that timed out may go on in the guest; the next one uses another connection.
        with pytest.raises(CommandFailed, match="none within 1 s"):
            await one.script("echo before; sleep 600", timeout_s=1)
        assert (await one.run("hostname")).stdout == "g0\n"
        assert len(one.shell._all) == len(one.shell._free) == 1
    nothing_left(factory, logs)


async def stopped(factory: GuestFactory, kernel: KernelFiles, logs: Path, seconds: float) -> None:
    with expect("SIGSTOP of QEMU"):
        await _stopped(factory, kernel, logs, seconds)
    nothing_left(factory, logs)


async def _stopped(factory: GuestFactory, kernel: KernelFiles, logs: Path, seconds: float) -> None:
    async with factory.guest("g0", SMALL, kernel, logs) as one:
        running = asyncio.create_task(one.run("sh", "-c", "sleep 1; hostname"))
        os.kill(one.pid, signal.SIGSTOP)
        began = time.monotonic()
        await asyncio.sleep(seconds)
        os.kill(one.pid, signal.SIGCONT)
        assert (await running).stdout == "g0\n" and time.monotonic() - began >= seconds
        assert (await one.monitor.execute("query-status"))["status"] == "running"


async def test_qemu_is_stopped_and_continued(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    await stopped(factory, kernel, logs, 2)


@pytest.mark.slow
async def test_qemu_is_stopped_for_30_s(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    await stopped(factory, kernel, logs, 30)


async def test_the_clock_jumps(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    years = 10 * 365 * 86400
    real, real_ns, jump = time.time, time.time_ns, 0
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump * 1_000_000_000)

    def on_state(state: State) -> None:
        nonlocal jump
        jump = years if jump <= 0 else -years

    with expect("clock jump"):
        async with factory.guest("g0", SMALL, kernel, logs, on_state=on_state) as one:
            # The guest's clock is the one that was set; later changes of either clock do not matter.
            assert (await one.run("date", "+%Y")).stdout.strip() in {
                str(time.gmtime(real() + way * years).tm_year) for way in (1, -1)
            }
            await one.run("date", "-s", "2001-01-01")
            assert (await one.run("hostname")).stdout == "g0\n"
    nothing_left(factory, logs)


async def test_a_guest_whose_clock_is_wrong_is_booted_again(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = clock.read_clock, list[float]()

    async def read(of: Guest) -> clock.Clock:
        found = await real(of)
        seen.append(found.offset_s)
        # In the first boot, a second of the guest lasts 0.13 s.
        return (
            clock.Clock(offset_s=found.offset_s - time.monotonic() * 0.87, error_s=found.error_s)
            if len(seen) <= 2
            else found
        )

    async def boot(self: GuestFactory, stack: contextlib.AsyncExitStack, spec: LaunchSpec) -> Guest:
        """Start a clone instead, which takes a tenth of the time of a boot."""
        return await self._boot(stack, replace(spec, template=await self.template(spec.machine, spec.files)))

    monkeypatch.setattr(clock, "read_clock", read)
    monkeypatch.setattr(GuestFactory, "_clone", boot)
    with expect("wrong clock of a booted guest"):
        async with factory.guest("g0", SMALL, kernel, logs) as one:
            assert (await one.run("hostname")).stdout == "g0\n"
    # A kernel may also really have measured its clock wrong.
    assert len(seen) >= 4 and "its clock does not go as ours; booting it again" in notes.notes[0]
    assert (logs / "failed-start" / "console.log").exists()
    nothing_left(factory, logs)


def _damage(how: str, folder: Path) -> None:
    state, memory, meta = folder / "state", folder / "memory", folder / cache.META
    record = json.loads(meta.read_text())
    if how == "record":
        meta.write_text("{")
    elif how == "state":
        state.write_bytes(os.urandom(state.stat().st_size))
    elif how == "foreign":
        # Of another machine, and complete according to its record.
        state.write_bytes(os.urandom(4096))
        meta.write_text(json.dumps(record | {"state_bytes": 4096, "state_sha256": file_sha256(state)}))
    elif how == "memory":
        size = memory.stat().st_size
        memory.write_bytes(b"")
        os.truncate(memory, size)
    elif how == "gone":
        memory.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("how", ("record", "state", "foreign", "memory", "gone"))
async def test_a_damaged_template_is_made_again(
    factory: GuestFactory,
    kernel: KernelFiles,
    logs: Path,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
) -> None:
    async with factory.guest("g0", SMALL, kernel, tmp_path / "first") as one:
        saved = one.spec.template
        assert saved is not None
        machine = one.spec.machine
    # Copies the template instead of making it again: other tests make one, which takes a boot.
    whole = saved.folder
    own = tmp_path / "templates" / machine.key
    own.parent.mkdir()

    async def again(folder: Path, *_: Any) -> dict[str, Any]:
        for name in ("state", "memory"):
            await asyncio.to_thread(_copy, whole / name, folder / name)
        return _record(folder, whole)

    monkeypatch.setattr(template, "save_template", again)
    monkeypatch.setattr("testbed.store.template_files.template_folder", lambda *_: own)
    shutil.copytree(whole, own, copy_function=_copy)
    (own / cache.META).write_text(json.dumps(_record(own, whole)))
    _damage(how, own)
    with expect("corrupt or foreign template"):
        async with factory.guest("g0", SMALL, kernel, logs) as one:
            assert (await one.run("hostname")).stdout == "g0\n"
    assert any("making the template again" in note for note in notes.notes)
    assert how != "state" or any("its checksum is not the one that was recorded" in note for note in notes.notes)
    nothing_left(factory, logs)


def _record(folder: Path, whole: Path) -> dict[str, Any]:
    """Return the record of a copy of a template."""
    return cache.read_meta(whole) | {"memory_ctime_ns": (folder / "memory").stat().st_ctime_ns}


def _copy(source: Any, target: Any) -> Any:
    """Copy a file with its holes and with its mode, by which QEMU may open it."""
    os.system(f"cp --sparse=always --preserve=mode '{source}' '{target}'")
    return target


@pytest.mark.slow
async def test_an_image_is_corrupt(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "root.ext4"
    _copy(factory.image.root, broken)
    with broken.open("r+b") as file:
        file.write(os.urandom(1 << 20))
    monkeypatch.setattr("testbed.store.image.Image.root", broken)
    factory.cold = True
    with expect("corrupt image") as met:
        async with factory.guest("g0", SMALL, kernel, logs):
            pass
    assert "panic on its console" in str(met.error)
    nothing_left(factory, logs)
    assert (logs / "console.log").read_text()
