"""The state of a guest that is ready, cloned or booted cold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import stat
import time
from pathlib import Path

import pytest

from testbed.errors import DeviceMismatch, WireBroken
from testbed.guest.channels.ssh import Shell
from testbed.guest.channels.ssh_endpoint import Credentials
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.guest.lifecycle import State
from testbed.qemu.machine_id import machine_id
from testbed.store import cache, template_files
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from testbed.topology.disks import make_disk
from tests.guest.conftest import Notes
from tests.support.faults import expect


async def test_two_clones_are_two_machines(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, tmp_path: Path
) -> None:
    async with (
        factory.guest("first", model, kernel, tmp_path / "1") as first,
        factory.guest("second", model, kernel, tmp_path / "2") as second,
    ):
        told = []
        for guest in (first, second):
            assert guest.state is State.READY
            before = time.time()
            said = (
                await guest.script("hostname; date +%s.%N; head -c 16 /dev/urandom | od -An -tx1; uname -r")
            ).stdout.splitlines()
            after = time.time()
            assert said[0] == guest.name
            assert before - 10 <= float(said[1]) <= after + 10  # not the template's clock; a busy machine sets it late
            assert said[3] == kernel.release
            told.append(said)
        assert told[0][2] != told[1][2]
        # What one guest writes to its root or its disks, the other does not see.
        await first.script(
            'echo mine >/root/note && dd if=/dev/urandom "of=$1" bs=4k count=1 conv=fsync status=none',
            first.disks["data"].path,
        )
        assert (await second.run("test", "-e", "/root/note", check=False)).status == 1
        read = await second.script('od -An -tx1 -N 4096 "$1" | sort -u', second.disks["data"].path)
        assert set(read.stdout.split()) <= {"00", "*"}


async def test_disks_are_those_of_the_topology_and_found_by_serial(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", model, kernel, logs) as guest:
        assert {name: (device.kind, device.size_bytes) for name, device in guest.disks.items()} == {
            name: (disk.type, disk.size) for name, disk in model.disks.items()
        }
        await guest.verify_disks()


@pytest.mark.slow
async def test_a_guest_that_differs_from_its_topology_is_refused(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", model, kernel, logs) as guest:
        await guest.hotplug.plug("extra", make_disk(type="nvme", size="8M"), 2)
        with pytest.raises(DeviceMismatch, match="expected no such disk, got one with serial 'tb-extra'"):
            await _until_mismatch(guest)
        await guest.hotplug.unplug("extra", make_disk(type="nvme", size="8M"))
        await guest.verify_disks()
        await guest.hotplug.unplug("data", model.disks["data"])
        with pytest.raises(DeviceMismatch, match=r"disks\.data: expected a virtio-blk disk"):
            await guest.verify_disks()
        await guest.hotplug.plug("data", make_disk(type="virtio-blk", size="512M"), 0)
        with pytest.raises(DeviceMismatch, match=r"disks\.data\.size: expected 1073741824 bytes, got 536870912"):
            await guest.verify_disks()


async def _until_mismatch(guest: Guest) -> None:
    """Check the disks until one differs: the guest takes a moment to see a disk that it was not told to wait for."""
    while True:
        await guest.verify_disks()


@pytest.mark.slow
async def test_a_cold_boot_gives_the_same_guest_as_a_clone(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, tmp_path: Path
) -> None:
    factory.cold = True
    async with factory.guest("cold", model, kernel, tmp_path / "1") as guest:
        assert guest.spec.template is None and guest.boot_s > 0
        assert set(guest.disks) == set(model.disks)
        assert (await guest.run("hostname")).stdout == "cold\n"
        assert (await guest.run("sh", "-c", "echo x >/root/writable")).status == 0


async def test_a_script_may_be_longer_than_the_ssh_server_s_longest_command(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("long", model, kernel, logs) as guest:
        said = await guest.script(f"echo {'x' * 20_000} $1; exit 3", "second", check=False)
        assert said.stdout == f"{'x' * 20_000} second\n" and said.status == 3
        # In any shell and of any length, a script does not read its own text as input, and errors name its own lines.
        for interpreter, length in (("sh", 0), ("sh", 20_000), ("bash", 0), ("bash", 20_000)):
            text = f'cat\nread -r x; echo "[$x] $1"\n. /none\n: {"x" * length}'
            said = await guest.script(text, "second", interpreter=interpreter, check=False)
            assert said.stdout == "[] second\n" and ": 3: " in said.stderr.replace("line ", ""), (
                interpreter,
                length,
                said,
            )


async def test_nothing_but_logs_is_left(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", model, kernel, logs) as guest:
        pid, sockets, scratch = guest.pid, guest.spec.sockets, guest.spec.scratch
        assert {path.name for path in sockets.iterdir()} == {"qmp", "poll", "console", "agent"}
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700 == stat.S_IMODE(sockets.parent.stat().st_mode)
        assert {path.name for path in scratch.iterdir()} == {"data.raw", "fast.raw"}
    assert not Path(f"/proc/{pid}").exists()
    assert not sockets.exists() and not scratch.exists()
    with pytest.raises(WireBroken):
        await guest.ssh_port.connect()
    assert {"argv.txt", "console.log", "dmesg.txt", "qmp.jsonl", "qemu.log", "stages.jsonl"} <= {
        path.name for path in logs.iterdir()
    }
    assert "device_add" in (logs / "qmp.jsonl").read_text()
    assert "Linux version" in (logs / "dmesg.txt").read_text()
    assert "-sandbox" in (logs / "argv.txt").read_text()


def _listening(place: str) -> list[str]:
    """Return the addresses and ports that are listened on in a network namespace, as the kernel prints them."""
    return [line.split()[1] for line in Path(place, "net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]


def _alone_in_its_network(pid: int) -> bool:
    """Return whether no other process that we may inspect is in the network namespace of `pid`."""
    own = Path(f"/proc/{pid}/ns/net").readlink()
    there = []
    for other in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            there += [int(other.name)] if (other / "ns/net").readlink() == own else []
    return there == [pid]


async def test_ssh_listens_in_its_own_network_namespace_for_the_key_of_this_run_only(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", model, kernel, logs) as guest:
        port = f"{guest.ssh_port.port:04X}"
        assert f"0100007F:{port}" in _listening(f"/proc/{guest.pid}") and f"00000000:{port}" not in _listening(
            f"/proc/{guest.pid}"
        )
        if factory.host.jail.net_ns:
            assert not [address for address in _listening("/proc") if address.endswith(f":{port}")]
            with contextlib.closing(socket.socket()) as neighbour, pytest.raises(ConnectionRefusedError):
                neighbour.connect(("127.0.0.1", guest.ssh_port.port))
            assert _alone_in_its_network(guest.pid)
        with pytest.raises(WireBroken, match="Permission denied"):
            await Shell.connect(
                "g0",
                await guest.ssh_port.connect(),
                credentials=Credentials(key=SshKey.new(), host_key=guest.host_key.public),
                endpoint=guest.ssh_port,
                command_s=10,
            )
        await _reaches_nothing(guest)


# Sends a DNS query for the addresses of the root (RFC 1035, 4.1) and counts the bytes of the answer.
_ASK_NAMES = r"""
exec 3<>/dev/udp/10.0.2.3/53
printf '\0\1\1\0\0\1\0\0\0\0\0\0\0\0\1\0\1' >&3
timeout 3 head -c 1 <&3 | wc -c
"""


async def _reaches_nothing(guest: Guest) -> None:
    """Check that the guest reaches neither this machine, which listens for it, nor anything behind it."""
    connect = "exec 3<>/dev/tcp/$0/$1"
    assert (await guest.run("bash", "-c", connect, "127.0.0.1", "22")).status == 0, "so it does where there is a way"
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        port = str(listener.getsockname()[1])
        # 10.0.2.2 is what QEMU's user network calls this machine's 127.0.0.1, and 10.0.2.3 its name server.
        tried = await guest.run("timeout", "5", "bash", "-c", connect, "10.0.2.2", port, check=False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert tried.status != 0
    assert (await guest.script(_ASK_NAMES, interpreter="bash")).stdout.strip() == "0"


@pytest.mark.slow
async def test_a_template_that_does_not_load_is_made_again_once_and_says_why(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path, notes: Notes
) -> None:
    """This template looks complete but is of another machine, which only QEMU finds; `test_faults` has other damage."""
    async with factory.guest("g0", model, kernel, logs) as guest:
        assert guest.spec.template is not None
        other = guest.spec.template.folder
    # A machine of its own: other tests clone the default one meanwhile.
    small = GuestModel.model_validate({"memory": "300M", "cpus": 1})
    folder = template_files.template_folder(
        factory.folders.cache, machine_id(factory.host, small, **_hashes(guest)).key
    )
    template_files.remove_template(folder)
    folder.mkdir(mode=0o700)
    shutil.copy(other / "state", folder / "state")
    (folder / "memory").touch()
    shutil.copymode(other / "memory", folder / "memory")
    os.truncate(folder / "memory", small.memory)
    foreign = cache.read_meta(other) | {"memory_ctime_ns": template_files.ctime_ns(folder / "memory")}
    (folder / cache.META).write_text(json.dumps(foreign))
    with expect("corrupt or foreign template"):
        async with factory.guest("g0", small, kernel, logs) as guest:
            assert (await guest.run("hostname")).stdout == "g0\n"
    assert any("does not load" in note or "does not wake up" in note for note in notes.notes)
    assert "migrate-incoming" in (logs / "failed-start" / "qmp.jsonl").read_text()
    assert cache.read_meta(folder)["host_key"] != foreign["host_key"]
    template_files.remove_template(folder)


@pytest.mark.slow
async def test_the_agent_answers_while_children_of_process_1_end(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, logs: Path
) -> None:
    """A SIGCHLD once interrupted the agent's write of its answer, and one clone in thirty seemed never to wake up."""
    async with factory.guest("g0", model, kernel, logs) as guest:
        # Orphans become children of process 1; each end is a SIGCHLD.
        orphans = asyncio.create_task(guest.script("for n in $(seq 200); do (true &); done"))
        while not orphans.done():
            guest.agent.send("disks", count="0")
            await guest.wait(guest.agent.expect("disks"), guest.deadlines.command_s)
        await orphans


def _hashes(guest: Guest) -> dict[str, str]:
    machine = guest.spec.machine
    return {"kernel": machine.kernel, "image": machine.image, "initramfs": machine.initramfs}


@pytest.mark.slow
async def test_twelve_clones_at_once_all_answer(
    factory: GuestFactory, model: GuestModel, kernel: KernelFiles, tmp_path: Path
) -> None:
    async def one(number: int) -> str:
        async with factory.guest(f"g{number}", model, kernel, tmp_path / str(number)) as guest:
            return (await guest.run("hostname")).stdout.strip()

    names = await asyncio.gather(*(one(number) for number in range(12)))
    assert names == [f"g{number}" for number in range(12)]
