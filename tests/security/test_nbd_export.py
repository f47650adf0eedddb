"""An export is confined as QEMU is, and its end is reported."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from testbed.errors import HostError
from testbed.host.facts import Account, Host, JailSupport
from testbed.qemu import blockdev, nbd_export
from testbed.qemu.nbd_export import Export
from testbed.qemu.nbd_server.settings import Settings
from testbed.topology.disks import Nvme, VirtioBlk
from tests.support.nbd_client import HELLO, MIB, WRITE, greet, replied, request
from tests.support.values import host, may_mount

_TRIES = """
import ctypes, json, os, socket, subprocess, sys
from testbed.qemu.nbd_server import confinement; from testbed.qemu.nbd_server import server as serving
from testbed.qemu.nbd_server.settings import Settings

def tried(name, call):
    try:
        call()
    except BaseException as error:
        return f"{name}: {type(error).__name__}"
    return f"{name}: done"

settings = Settings(**json.loads(sys.argv[1]))
confinement.confine_process(settings)
said = [
    tried("read a file", lambda: os.open("/etc/passwd", os.O_RDONLY)),
    tried("make a file", lambda: os.open("/tmp/testbed-owned", os.O_CREAT | os.O_WRONLY)),
    tried("list a folder", lambda: os.listdir("/")),
    tried("make a socket", lambda: socket.socket(socket.AF_INET)),
    tried("make a socket of this machine", lambda: socket.socket(socket.AF_UNIX)),
    tried("start a program", lambda: os.execv("/bin/true", ["true"])),
    tried("make a process", os.fork),
    tried("signal its parent", lambda: os.kill(os.getppid(), 0)),
    tried("be root", lambda: os.setuid(0)),
    tried("look at a file", lambda: os.stat("/etc/passwd")),
    tried("change a mode", lambda: os.fchmod(settings.file, 0o777)),
]
os.write(1, "\\n".join(said).encode())
os._exit(0)
"""


@pytest.mark.parametrize(
    "account", [None, pytest.param(65534, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"))]
)
def test_a_confined_export_opens_starts_and_signals_nothing(account: int | None, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    with (tmp_path / "disk").open("rb") as file:
        settings = Settings(
            file=file.fileno(), parent=os.getpid(), uid=account, gid=account, mount_ns=may_mount(), confined=True
        )
        found = subprocess.run(
            [sys.executable, "-c", _TRIES, json.dumps(asdict(settings))],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            pass_fds=[file.fileno()],
        )
    tries = dict(line.split(": ") for line in found.stdout.splitlines())
    assert len(tries) == 11 and set(tries.values()) <= {"PermissionError", "ProcessLookupError"}, found


async def started(tmp_path: Path, on_end: Callable[[str], None] = pytest.fail, of: Host | None = None) -> Export:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    disk.chmod(0o600)
    return await Export.start(
        "data", Settings(block_bytes=512), file=disk, log=tmp_path / "log", host=of, on_end=on_end
    )


def status(pid: int) -> dict[str, str]:
    return {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    }


async def test_an_export_is_confined_as_qemu_is(tmp_path: Path) -> None:
    account = Account(uid=65534, gid=65534) if os.geteuid() == 0 else None
    held = JailSupport(confined=True, mount_ns=may_mount())
    export = await started(tmp_path, of=replace(host(), account=account, jail=held))
    try:
        found = status(export._child.pid)
        assert found["NoNewPrivs"] == "1" and found["Seccomp"] == "2"
        assert {int(found[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
        if account is not None:
            assert found["Uid"].split() == ["65534"] * 4 == found["Gid"].split() and found["Groups"] == ""
        greet(export.client)
        export.client.sendall(request(WRITE, 0, 512, b"x" * 512))
        assert replied(export.client) == (0, 7) and (tmp_path / "disk").read_bytes()[:512] == b"x" * 512
    finally:
        await export.close()


async def test_an_export_that_cannot_be_confined_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = "def fail():\n    raise OSError('no libseccomp')\nconfinement._prepare_filter = fail\n"
    program = nbd_export._PROGRAM.replace(
        "; main()", f"\nfrom testbed.qemu.nbd_server import confinement\n{failing}main()"
    )
    monkeypatch.setattr(nbd_export, "_PROGRAM", program)
    with pytest.raises(HostError, match="disk data: its export ended: OSError: no libseccomp"):
        await started(tmp_path, of=replace(host(), account=None, jail=JailSupport(confined=True)))


def test_an_export_whose_owner_has_ended_does_not_start() -> None:
    own, other = socket.socketpair()
    with own, other:
        words = [
            sys.executable,
            "-m",
            "testbed.qemu.nbd_server",
            json.dumps(asdict(Settings(wire=own.fileno(), room_bytes=MIB, parent=1))),
        ]
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            pass_fds=[own.fileno()],
            timeout=60,
        )
    assert done.returncode == 1 and "the process that started it has ended" in json.loads(done.stdout)["ends"]


async def test_the_end_of_an_export_is_reported_to_its_owner_and_client(tmp_path: Path) -> None:
    ends: asyncio.Queue[str] = asyncio.Queue()
    export = await started(tmp_path, ends.put_nowait)
    os.kill(export._child.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert "disk data: its export ended: it was killed, or failed" in await ends.get()
    export.client.settimeout(20)
    while export.client.recv(4096):
        pass
    with pytest.raises(HostError, match="its export ended: signal 9"):
        await export.hold(1)
    await export.close()


async def test_an_exception_in_the_export_is_reported_and_its_traceback_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds once it may open no file, which a traceback would try to."""
    broken = "def broken(self):\n    raise OverflowError('too large')\ndevice.Device.due = broken\n"
    program = nbd_export._PROGRAM.replace("; main()", f"\nfrom testbed.qemu.nbd_server import device\n{broken}main()")
    monkeypatch.setattr(nbd_export, "_PROGRAM", program)
    ends: asyncio.Queue[str] = asyncio.Queue()
    export = await started(tmp_path, ends.put_nowait, replace(host(), account=None, jail=JailSupport(confined=True)))
    async with asyncio.timeout(20):
        assert "disk data: its export ended: OverflowError: too large" in await ends.get()
    await export.close()
    assert "in broken" in (tmp_path / "log").read_text()


async def test_a_client_that_breaks_the_protocol_is_reported_to_the_owner(tmp_path: Path) -> None:
    ends: asyncio.Queue[str] = asyncio.Queue()
    export = await started(tmp_path, ends.put_nowait)
    export.client.sendall(HELLO + b"\x1b[31m" + bytes(28))
    async with asyncio.timeout(20):
        why = await ends.get()
    assert "its export ended: its client: expected a request" in why and "\x1b" not in why
    await export.close()


async def test_closing_an_export_reports_nothing(tmp_path: Path) -> None:
    export = await started(tmp_path)
    await export.close()
    assert export._child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("said", ["'nonsense'", "'[]'", "'[' * 50_000", "'1'", "'x' * (1 << 20)"])
async def test_output_that_is_not_an_answer_ends_the_export(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"import sys, time; sys.stdout.write({said} + chr(10)); sys.stdout.flush(); time.sleep(1000)"
    monkeypatch.setattr(nbd_export, "_PROGRAM", program)
    with pytest.raises(HostError, match="its export ended: an answer cannot be parsed"):
        await started(tmp_path)


def test_the_block_size_is_that_of_the_disk_if_its_file_is_a_multiple() -> None:
    def blocks(disk: Nvme | VirtioBlk, name: str = "d") -> int:
        stores = dict(zip(("d", "e"), blockdev.plan_storage("d", disk, Path("/s")), strict=False))
        return nbd_export.export_settings(name, disk, stores.get(name)).block_bytes

    assert blocks(Nvme.model_validate({"type": "nvme", "size": "1G", "logical-block-size": 4096})) == 4096
    assert blocks(VirtioBlk.model_validate({"type": "virtio-blk", "size": "1G"})) == 512
    assert blocks(VirtioBlk.model_validate({"type": "virtio-blk", "size": "1G", "format": "qcow2"})) == 1
    assert blocks(VirtioBlk.model_validate({"type": "virtio-blk", "size": "1G", "format": "null-co"})) == 512
