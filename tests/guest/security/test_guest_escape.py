"""Attacks of a guest and its QEMU on this machine: see docs/security.md."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import CommandFailed, GuestError, HostError
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.hardware.latency import Latency
from testbed.qemu import jail_exec
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from tests.support import places
from tests.support.values import may_mount

_CONNECT = """
import socket, sys
for path in sys.argv[1:]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            socket.socket(socket.AF_UNIX, kind).connect(path)
        except OSError as error:
            said = type(error).__name__
        else:
            said = "connected"
            break
    print(said)
"""
STRANGER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--")


async def test_a_guest_and_its_qemu_are_confined(
    factory: GuestFactory,
    model: GuestModel,
    kernel: KernelFiles,
    logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TESTBED_TEST_SECRET", "1")
    async with factory.guest("g0", model, kernel, logs) as guest:
        _is_nobody(guest)
        _has_open_what_it_was_handed(guest)
        _keeps_strangers_out(guest)
        await _says_nothing_to_the_terminal(guest)
        await _opens_no_file_of_this_machine(guest, tmp_path)
        await _reaches_no_network(guest)
        await _is_lost_with_an_export_that_is_held(guest)


def _is_nobody(guest: Guest) -> None:
    lines = (line.partition(":") for line in Path(f"/proc/{guest.pid}/status").read_text().splitlines())
    status = {key: value.split() for key, _, value in lines}
    assert status["NoNewPrivs"] == ["1"] and status["Seccomp"] == ["2"]
    if os.geteuid() == 0:
        account = guest.spec.host.account
        assert account is not None and account.uid not in (0, 65534)
        assert (
            set(status["Uid"]) == {str(account.uid)}
            and set(status["Gid"]) == {str(account.gid)}
            and status["Groups"] == []
        )
    assert {int(status[f"Cap{kind}"][0], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
    limits = {
        line[:26].strip(): line[26:].split()[:2] for line in Path(f"/proc/{guest.pid}/limits").read_text().splitlines()
    }
    assert limits["Max core file size"] == ["0", "0"] and all(int(most) <= 4096 for most in limits["Max open files"])
    environment = Path(f"/proc/{guest.pid}/environ").read_bytes().split(b"\0")
    assert b"TESTBED_TEST_SECRET=1" not in environment and any(entry.startswith(b"TMPDIR=") for entry in environment)
    # A kernel that is out of memory kills QEMU before any other process.
    assert Path(f"/proc/{guest.pid}/oom_score_adj").read_text() == "1000\n"


def _has_open_what_it_was_handed(guest: Guest) -> None:
    """Check that QEMU can write only to its own disks, memory and log, whose names may differ in its jail."""
    template = guest.spec.template
    assert template is not None and template.memory is not None
    own = [path for path in guest.spec.scratch.rglob("*") if path.is_file()]
    allowed = {(path.stat().st_dev, path.stat().st_ino) for path in (*own, template.memory, guest.logs / "qemu.log")}
    for number in Path(f"/proc/{guest.pid}/fd").iterdir():
        target, opened = number.readlink(), number.stat()
        flags = next(
            line
            for line in Path(f"/proc/{guest.pid}/fdinfo/{number.name}").read_text().splitlines()
            if line.startswith("flags")
        )
        if (
            stat.S_ISREG(opened.st_mode)
            and not str(target).startswith("/memfd:")
            and int(flags.split()[1], 8) & os.O_ACCMODE
        ):
            # A file that QEMU has created and removed has no name.
            assert (opened.st_dev, opened.st_ino) in allowed or opened.st_nlink == 0, target


def _keeps_strangers_out(guest: Guest) -> None:
    sockets = guest.spec.sockets
    for folder in (sockets, guest.spec.scratch, sockets.parent, guest.spec.scratch.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {"qmp", "poll", "agent", "console"} <= {path.name for path in _sockets_that_are_private(sockets)}


def _sockets_that_are_private(folder: Path) -> list[Path]:
    """Return all sockets below a folder; check that no other user has permissions on one, or can open it."""
    found = [path for path in folder.rglob("*") if path.is_socket()]
    assert {path.name: path.stat().st_mode & 0o077 for path in found} == {path.name: 0 for path in found}
    if os.geteuid() == 0:  # only root can try it as another user
        tried = subprocess.run(
            [*STRANGER, "/usr/bin/python3", "-c", _CONNECT, *found], capture_output=True, text=True, check=True
        )
        assert tried.stdout.split() == ["PermissionError"] * len(found)
    return found


async def _says_nothing_to_the_terminal(guest: Guest) -> None:
    with pytest.raises(CommandFailed, match="owned") as failed:
        await guest.script(
            r"printf '\033]0;owned\007\033[2J'; printf '\033[31mowned\n' >&2; "
            r"printf '\033]0;owned\007' >/dev/console; exit 1"
        )
    assert "\x1b" not in str(failed.value)
    assert "\x1b" in failed.value.output, "for programs it is as it was said"
    assert not any("\x1b" in line for line in guest.console.tail())


async def _opens_no_file_of_this_machine(guest: Guest, tmp_path: Path) -> None:
    """Try what a QEMU that a guest controls would do: read and write files that only we may."""
    host = guest.spec.host
    assert host.jail.confined, host.jail.why_unconfined
    if os.geteuid() != 0 and host.jail.landlock_abi < jail_exec.FILES_SINCE:
        return  # its QEMU is the same user as we are: docs/security.md says so
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    secret.chmod(0o600)
    for path in (secret, Path("/etc/shadow"), lab_cache(guest)):
        with pytest.raises(HostError, match=r"Permission denied|No such file"):
            await guest.monitor.execute(
                "blockdev-add", {"driver": "file", "node-name": "stolen", "filename": str(path), "read-only": True}
            )
    with pytest.raises(HostError, match=r"Permission denied|No such file"):
        await guest.monitor.execute(
            "chardev-add", {"id": "bad", "backend": {"type": "file", "data": {"out": str(tmp_path / "owned")}}}
        )
    assert not (tmp_path / "owned").exists()
    assert host.jail.mount_ns or not may_mount(), host.jail.why_no_mount_ns
    if host.jail.mount_ns:
        await _sees_nothing_in_tmp(guest)


async def _reaches_no_network(guest: Guest) -> None:
    """Try to connect to this machine and to send to an address, where a listener and a receiver wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        inet = [
            {"type": "inet", "data": {"host": "127.0.0.1", "port": str(one.getsockname()[1])}}
            for one in (listener, receiver)
        ]
        own = {"type": "unix", "data": {"path": str(guest.spec.sockets / "poll")}}
        backends: list[tuple[str, dict[str, Any]]] = [
            ("socket", {"addr": inet[0], "server": False}),
            ("udp", {"remote": inet[1]}),
            ("socket", {"addr": own, "server": False}),
        ]
        for kind, data in backends:
            with pytest.raises(HostError, match=r"Permission denied|Operation not permitted"):
                await guest.monitor.execute("chardev-add", {"id": "bad", "backend": {"type": kind, "data": data}})


async def _is_lost_with_an_export_that_is_held(guest: Guest) -> None:
    """Check that a disk's export is confined as QEMU is; when it dies, the guest gets errors and waiters the reason."""
    name, disk = next(iter(guest.disks.items()))
    await guest.hardware.delay(name, Latency(read_us=1000))
    export = _export_of(os.getpid())
    lines = (line.partition(":") for line in (export / "status").read_text().splitlines())
    status = {key: value.split() for key, _, value in lines}
    assert status["NoNewPrivs"] == ["1"] and status["Seccomp"] == ["2"] and status["Threads"] == ["1"]
    assert {int(status[f"Cap{kind}"][0], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
    if guest.spec.host.account is not None:
        assert set(status["Uid"]) == {str(guest.spec.host.account.uid)} and status["Groups"] == []
    assert b"TESTBED_TEST_SECRET" not in (export / "environ").read_bytes()
    # It has open only its disk and its client's socket, with which it was started.
    opened = [number.readlink() for number in (export / "fd").iterdir() if int(number.name) > 2]
    assert sorted("socket" if str(path).startswith("socket:") else path.parent.name for path in opened) == [
        guest.spec.scratch.name,
        "socket",
    ]
    os.kill(int(export.name), signal.SIGKILL)
    with pytest.raises(HostError, match=f"disk {name}: its export ended: it was killed"):
        await guest.run("sleep", "60")
    read = await guest.shell.run(
        ("dd", f"if={disk.path}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"), check=False
    )
    assert read.status != 0 and "Input/output error" in read.stderr


def _export_of(parent: int) -> Path:
    """Return the folder in /proc of the one export that a process has started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = (
        Path(f"/proc/{pid}")
        for pid in children
        if b"testbed.qemu.nbd_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


async def _sees_nothing_in_tmp(guest: Guest) -> None:
    """Check that QEMU can neither read a public file in /tmp, nor create a file there."""
    with tempfile.NamedTemporaryFile(dir="/tmp") as everybodys:
        Path(everybodys.name).write_bytes(bytes(4096))
        Path(everybodys.name).chmod(0o666)
        with pytest.raises(HostError, match="No such file"):
            await guest.monitor.execute(
                "blockdev-add", {"driver": "file", "node-name": "stolen", "filename": everybodys.name}
            )
    with pytest.raises(HostError, match=r"Read-only file system|Permission denied"):
        await guest.monitor.execute(
            "chardev-add", {"id": "bad", "backend": {"type": "file", "data": {"out": "/tmp/testbed-owned"}}}
        )
    assert not Path("/tmp/testbed-owned").exists()


def lab_cache(guest: Guest) -> Path:
    """Return a file of the cache that this guest's QEMU has no need to open."""
    template = guest.spec.template
    assert template is not None
    return template.folder / "meta.json"


async def test_qemu_starts_no_program(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    """The program would only do what QEMU may do itself: create a file in its own folder.

    The guest can be migrated; otherwise QEMU would refuse to try.
    """
    with contextlib.suppress(GuestError):  # QEMU is killed for it
        async with factory.guest("g0", GuestModel(cpus=1, memory=256 << 20), kernel, logs) as guest:
            owned = guest.spec.scratch / "owned"
            with contextlib.suppress(HostError):
                await guest.monitor.execute("migrate", {"uri": f"exec:echo >{guest.jail.visible(str(owned))}"})
                await guest.wait(guest.run("true"), 5)
            assert not owned.exists()


# Has sockets of each kind; an export's socket has no name.
WIRED = """\
version: 1
guests:
  guard:
    cpus: 1
    memory: 256M
    disks: {data: {type: virtio-blk, size: 64M, latency: {read: 1ms}}}
    networks: {lan: {}}
  peer: {cpus: 1, memory: 256M, networks: {lan: {}}}
"""


async def test_the_key_and_sockets_of_a_vm_are_private() -> None:
    with places.made() as own:
        await own.run("up", own.file("g.yaml", WIRED), "--quiet")
        try:
            runtime = own.runtime / "testbed"
            folder = runtime / "vms" / "guard"
            private = {path.name for path in _sockets_that_are_private(runtime)}
            assert {"control", "console", "ssh", "qmp", "poll", "agent", "lan.in", "lan.out"} <= private
            assert {
                path: stat.S_IMODE(path.stat().st_mode) for path in (runtime, folder.parent, folder)
            } == dict.fromkeys((runtime, folder.parent, folder), 0o700)
            assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
            listed: dict[str, Any] = {}
            (log,) = own.state.glob("runs/*/guard/log.jsonl")
            for line in log.read_text().splitlines():
                listed = json.loads(line)
                assert {"time", "monotonic_s", "level", "event"} <= listed.keys()
            assert (listed["guest"], listed["stage"], listed["event"]) == ("guard", "ready", "SSH answered")
        finally:
            await own.run("down", "--all")
        await own.nothing_left()
