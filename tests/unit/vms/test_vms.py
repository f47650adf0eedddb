"""Guests that stay: their records, the table of what their disks do, the inventory, and the frames between them."""

import asyncio
import contextlib
import errno
import io
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from rich.console import Console

from testbed.cli import vms as cli_vms
from testbed.errors import GuestError, GuestLost, HostError, UsageError
from testbed.guest.metrics import disk_speed
from testbed.host import paths, registry
from testbed.host.control_client import ControlClient
from testbed.host.paths import Folders
from testbed.host.registry import VmHandle, VmRecord
from testbed.progress import Silent
from testbed.qemu.frame_switch import SwitchPort
from testbed.report import inventory, vm_tables
from testbed.topology.model import Topology
from testbed.vms import control as desk
from testbed.vms import launcher, supervisor
from testbed.vms.launcher import GuestRequest, LaunchRequest
from testbed.vms.prefork import PreforkedWorker
from testbed.vms.supervisor import VmSpec
from tests.support import places

RECORD = VmRecord(
    name="g0",
    state=registry.READY,
    topology="/somewhere/default.yaml",
    point="",
    guest="g0",
    kernel="debian-6.1",
    release="6.1.0",
    memory_bytes=1 << 30,
    cpus=1,
    disks=("data",),
    loops=("l0",),
    evidence="/evidence",
    supervisor=os.getpid(),
    since=0,
    networks="/nowhere",
    devices={"data": "/dev/vdc", "l0": "/dev/loop0"},
)


@pytest.fixture
def folders() -> Iterator[Folders]:
    with tempfile.TemporaryDirectory(prefix="tb-") as short:  # sockets have short names
        root = Path(short)
        yield Folders(cache=root, state=root, runtime=root, admission=root)


def test_a_folder_that_was_made_for_a_lock_is_ours_alone_once_it_is_claimed(folders: Folders) -> None:
    with registry.claim_name(folders, "g0") as folder:
        made = folder
    made.mkdir(mode=0o755)
    with registry.claim_name(folders, "g0") as folder:
        assert folder == made and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_record_is_there_while_its_folder_is_held_and_no_longer(folders: Folders) -> None:
    with registry.claim_name(folders, "g0") as folder:
        assert registry.list_vms(folders) == ()  # it has no record yet
        registry.write_record(folder, RECORD)
        assert registry.find_vm(folders, "g0").record == RECORD
        with pytest.raises(UsageError, match="g1: there is no such guest; there are g0"):
            registry.find_vm(folders, "g1")
        with pytest.raises(UsageError, match="end it with: testbed down g0"), registry.claim_name(folders, "g0"):
            pass
    assert registry.list_vms(folders) == ()


def test_what_a_killed_supervisor_leaves_is_removed(folders: Folders) -> None:
    (left := folders.runtime / "vms" / "g0").mkdir(parents=True)
    registry.write_record(left, RECORD)
    (network := folders.runtime / "net-1").mkdir()
    assert registry.list_vms(folders) == ()  # and takes the news of it from nobody
    assert registry.remove_dead(folders) == (RECORD,)
    assert not left.exists() and not network.exists()
    left.mkdir()
    registry.write_record(left, RECORD)
    with pytest.raises(
        UsageError, match="g0: its supervisor was killed, and the guest ended with it; its logs: /evidence"
    ):
        registry.find_vm(folders, "g0")
    assert registry.remove_dead(folders) == ()


def test_a_network_stays_while_a_guest_names_it(folders: Folders) -> None:
    (network := folders.runtime / "net-1").mkdir()
    with registry.claim_name(folders, "g0") as folder:
        registry.write_record(folder, replace(RECORD, networks=str(network)))
        registry.remove_dead(folders)
        assert network.exists()
    registry.remove_dead(folders)
    assert not network.exists()


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


def reading(at: float, requests: int, **cgroups: int) -> dict[str, Any]:
    """Each request of 4096 bytes took 2 ms."""
    way = {"requests": requests, "bytes": requests * 4096, "time_ns": requests * 2_000_000}
    idle = {"requests": 0, "bytes": 0, "time_ns": 0}
    return {
        "at": at,
        "disks": {
            "data": {"rd": way, "wr": idle, "limits": {"iops-total": 100, "bps-total": 1 << 20}, "cgroups": cgroups}
        },
    }


def test_a_load_is_the_difference_of_two_readings() -> None:
    (load,) = vm_tables.disk_loads("g0", reading(10, 100, a=4096), reading(12, 300, a=4096 * 151, b=4096 * 50, c=0))
    assert load.iops == (100, 0) and load.bytes_s == (409600, 0) and load.latency_ms == (2, None)
    assert load.shares == (("a", 0.75), ("b", 0.25))
    young = replace(RECORD, since=time.time() - 65)
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(
        vm_tables.loads_table((load,)),
        vm_tables.guests_table((young, replace(young, state=registry.LOST, why="panic\nand more"))),
    )
    text = console.export_text()
    assert "iops-total 100, bps-total 1M" in text and "a 75%, b 25%" in text
    assert "1m 05s" in text and "lost: panic" in text and "and more" not in text


def test_ages() -> None:
    assert [vm_tables.age(seconds) for seconds in (5, 65, 3720, 90000)] == ["5s", "1m 05s", "1h 02m", "1d 1h"]


def test_the_inventory_has_ready_guests_alone() -> None:
    there = (
        VmHandle(folder=Path("/run/g0"), record=RECORD),
        VmHandle(
            folder=Path("/run/g1"), record=replace(RECORD, name="g1", kernel="/tmp/My Kernel.deb", state=registry.READY)
        ),
        VmHandle(folder=Path("/run/g2"), record=replace(RECORD, name="g2", state=registry.LOST)),
    )
    listed = inventory.make_inventory(there)
    assert listed["testbed"] == {"hosts": ["g0", "g1"], "children": ["kernel_debian_6_1", "kernel_my_kernel_deb"]}
    assert listed["kernel_debian_6_1"] == {"hosts": ["g0"]}
    own = listed["_meta"]["hostvars"]["g0"]
    assert own["ansible_ssh_common_args"] == "-F '/run/g0/ssh_config'"
    assert own["testbed_disks"] == {"data": "/dev/vdc"} and own["testbed_loops"] == {"l0": "/dev/loop0"}


async def test_a_socket_that_is_listened_on_is_its_users_alone(folders: Folders) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.write(b"hello")

    control, outlet = folders.runtime / "control", folders.runtime / "own.out"
    plug = SwitchPort(outlet=outlet, inlet=folders.runtime / "own.in", others=())
    plug.open()
    for _ in range(2):  # the second in the place of what the first has left
        async with desk.listen(control, greet):
            reader, writer = await asyncio.open_unix_connection(control)
            assert await reader.read() == b"hello"
            writer.close()
            assert [stat.S_IMODE(path.stat().st_mode) for path in (control, outlet)] == [0o600, 0o600]
    await plug.close()


def test_the_folder_of_guests_that_stay_is_their_users_alone(folders: Folders) -> None:
    with registry.claim_name(folders, "g0") as folder:
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o700, 0o700]


async def test_frames_reach_every_other_guest_and_a_missing_one_holds_nobody_up(folders: Folders) -> None:
    there, away = folders.runtime / "there.in", folders.runtime / "away.in"
    plug = SwitchPort(outlet=folders.runtime / "own.out", inlet=folders.runtime / "own.in", others=(away, there))
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as qemu,
    ):
        for one in (peer, qemu):
            one.setblocking(False)
        peer.bind(str(there))
        plug.open()
        for number in range(3):
            await loop.sock_sendto(qemu, bytes([number]) * 60, str(folders.runtime / "own.out"))
        async with asyncio.timeout(5):
            assert [(await loop.sock_recv(peer, 100))[0] for _ in range(3)] == [0, 1, 2]
    await plug.close()
    assert not (folders.runtime / "own.out").exists()


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


class Slow:
    """Something that goes on until it is ended, which takes it a moment."""

    def __init__(self, ended: list[str]) -> None:
        self.begun, self._ended = asyncio.Event(), ended

    async def go_on(self, *_: object) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            self._ended.append("slow")


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


async def test_an_error_of_a_supervisor_keeps_its_class(folders: Folders) -> None:
    async def lost(asked: dict[str, Any]) -> dict[str, Any]:
        raise GuestLost("g0", "ready", "it ended")

    with registry.claim_name(folders, "g0") as folder:
        registry.write_record(folder, RECORD)
        async with desk.listen(
            folder / "control", lambda reader, writer: desk.answer_request("g0", {"lose": lost}, reader, writer)
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
        async with desk.listen(
            folder / "control", lambda reader, writer: desk.answer_request("g0", verbs, reader, writer)
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
    async with desk.listen(folders.runtime / "control", slow.go_on):
        reader, writer = await asyncio.open_unix_connection(folders.runtime / "control")
        await slow.begun.wait()
    assert ended == ["slow"] and await reader.read() == b""
    writer.close()


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


def test_names_complete_in_the_shell(folders: Folders, tmp_path: Path) -> None:
    runtime = folders.runtime / "testbed"
    runtime.mkdir()
    with registry.claim_name(
        Folders(cache=tmp_path, state=tmp_path, runtime=runtime, admission=runtime), "g0"
    ) as folder:
        registry.write_record(folder, RECORD)
        env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folders.runtime),
            "TESTBED_STATE": str(tmp_path),
            "_TESTBED_COMPLETE": "complete_bash",
            "COMP_WORDS": "testbed ssh g",
            "COMP_CWORD": "2",
        }
        words = [sys.executable, "-c", "import sys; sys.argv[0] = 'testbed'; from testbed.cli import main; main()"]
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
        )
        assert done.stdout.split() == ["g0"], done


@pytest.mark.parametrize("terminal", [False, True])
def test_logs_are_followed_until_their_guest_ends_and_steer_no_terminal(
    folders: Folders, tmp_path: Path, terminal: bool
) -> None:
    runtime = folders.runtime / "testbed"
    runtime.mkdir()
    log = tmp_path / "console.log"
    log.write_text("first\x1b[2J\n")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folders.runtime), "TESTBED_STATE": str(tmp_path)}
    ours, theirs = os.openpty() if terminal else os.pipe()
    with (
        registry.claim_name(
            Folders(cache=tmp_path, state=tmp_path, runtime=runtime, admission=runtime), "g0"
        ) as folder,
        subprocess.Popen(["cat"], stdin=-1) as guest,
    ):
        registry.write_record(folder, replace(RECORD, evidence=str(tmp_path), supervisor=guest.pid))
        words = [sys.executable, "-m", "testbed", "logs", "g0", "--follow"]
        with subprocess.Popen(words, env=env, stdout=theirs, cwd=Path(__file__).parents[3]) as followed:
            os.close(theirs)
            said = b""
            while b"first" not in said:
                said += os.read(ours, 1000)
            with log.open("a") as file:
                file.write("second\x1b]0;owned\x07\n")
            while b"second" not in said:
                said += os.read(ours, 1000)
            assert guest.stdin is not None
            guest.stdin.close()
            guest.wait()
            assert followed.wait(30) == 0
    os.close(ours)
    assert (b"\x1b" in said) is not terminal


def test_a_copy_by_scp_names_what_it_changes(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/file").write_text("all of it")
    other = tmp_path / "other"
    other.mkdir()
    (other / "link").symlink_to("file")
    (other / "dangling").symlink_to("nowhere")
    (other / "file").touch()
    os.truncate(other / "file", 1 << 20)
    words = [str(tmp_path / "plain"), str(other), "-r", str(tmp_path / "nowhere")]
    assert list(cli_vms._changed_by_scp(words)) == [
        f"{other}: scp copies what its 2 symbolic links lead to",
        f"{other}: scp fills the holes of 1 file with zeroes",
    ]
