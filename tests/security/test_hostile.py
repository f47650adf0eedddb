"""Guests, files and servers that mean harm, as far as no guest is needed for it; see docs/security.md."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import stat
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from unittest.mock import AsyncMock

import asyncssh
import pytest
from rich.console import Group
from rich.text import Text

from testbed.cli.app import _Terminal
from testbed.errors import CommandFailed, GuestError, HostError, TestbedError, TopologyError, UsageError, WireBroken
from testbed.guest import boot_files
from testbed.guest.channels import agent as agents
from testbed.guest.channels import ssh
from testbed.guest.channels.agent import Agent
from testbed.guest.channels.kernel_log import clean
from testbed.guest.channels.ssh import Shell
from testbed.guest.channels.ssh_endpoint import Credentials, ForwardedPort
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.factory import GuestFactory
from testbed.hashing import file_sha256
from testbed.host import paths
from testbed.host.logfile import Log
from testbed.progress import Silent
from testbed.qemu import disk_files
from testbed.qemu.blockdev import Storage
from testbed.qemu.monitor import Monitor
from testbed.qemu.nbd_export import Export
from testbed.qemu.nbd_server.settings import Settings
from testbed.store import cache, checksums, image, snapshot_files
from testbed.store.apt import PrivateApt
from testbed.store.kernels import build_names, kernel_files
from testbed.store.kernels.build_names import NamedBuild
from testbed.store.kernels.table import BuiltKernel, Series
from testbed.store.mirror import Mirror
from testbed.store.template_files import ctime_ns
from testbed.text import printable
from testbed.topology import GuestModel, load
from testbed.topology.load import parse
from tests.support.qmp_server import fake_qmp
from tests.unit.qemu.test_monitor import connected

ROOT = Path(__file__).parents[2]
# Sets the title, clears the screen, answers as if typed, hides text, turns writing around.
CODES = "\x1b]0;owned\x07\x1b[2J\x1b[6n\x1bP$q\x1b\\\x9b31m\u202etxt\x08\r"


# Terminals --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        TestbedError(CODES),
        GuestError(CODES),
        CommandFailed("g0", CODES, "1", CODES),
        HostError(CODES),
        UsageError(CODES),
    ],
)
def test_no_message_steers_a_terminal(error: TestbedError) -> None:
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", str(error)) is None


def test_what_is_printed_does_not_steer_the_terminal_and_lines_stay_lines() -> None:
    with contextlib.closing(open(os.devnull, "w")) as nowhere:  # noqa: PTH123  # a text file that rich can have
        terminal = _Terminal(file=nowhere, force_terminal=True, width=200)
        with terminal.capture() as captured:
            terminal.print(f"one{CODES}\ntwo\tthree", markup=False, highlight=False)
            terminal.print(Text.assemble(("PASS", "bold"), f"\n{CODES}"), Group(Text(CODES)))
    plain, _, styled = captured.get().partition("three\n")
    assert plain == "one]0;ownedP$q\\31mtxt\ntwo     "
    assert (
        styled.replace("\x1b[1m", "", 1).replace("\x1b[0m", "", 1) == "PASS\n]0;ownedP$q\\31mtxt\n]0;ownedP$q\\31mtxt\n"
    )
    assert printable("a\tb\nc ä 漢") == "a\tb\nc ä 漢" and clean("x" * 2000) == "x" * 1000


# SSH --------------------------------------------------------------------------------------------------------------------------------

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[int]:
    """A port of this machine where somebody answers."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def connect(port: int, host_key: str = SshKey.new().public) -> Shell:
    endpoint = ForwardedPort("g0", None)
    endpoint.port = port
    wire = await endpoint.connect()
    credentials = Credentials(key=SshKey.new(), host_key=host_key)
    return await Shell.connect("g0", wire, credentials=credentials, endpoint=endpoint, command_s=30)


@pytest.mark.parametrize(
    "said",
    [
        os.urandom(4096),
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"SSH-2.0-x\r\n" + b"\xff" * 4096,
        b"\x1b[2J\r\n" * 5000,
        b"SSH-1.0-old\r\n",
    ],
    ids=["noise", "http", "a packet of 4 GiB", "a banner without end", "an old protocol"],
)
async def test_garbage_in_place_of_ssh_is_an_error_at_once(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await reader.read(4096)
        writer.close()

    async with answering(answer) as port, asyncio.timeout(30):
        with pytest.raises(WireBroken, match="guest g0: SSH: "):
            await connect(port)


async def test_a_line_without_end_in_place_of_ssh_costs_no_memory() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                writer.write(b"x" * 65536)
                await writer.drain()

    tracemalloc.start()
    try:
        async with answering(answer) as port, asyncio.timeout(60):
            with pytest.raises(WireBroken):
                await connect(port)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


class _Anybody(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


@contextlib.asynccontextmanager
async def ssh_server(
    key: SshKey, command: Callable[[asyncssh.SSHServerProcess[bytes]], Awaitable[None]]
) -> AsyncIterator[int]:
    host_key = asyncssh.import_private_key(key.openssh)
    async with asyncssh.listen(
        "127.0.0.1", 0, server_factory=_Anybody, server_host_keys=[host_key], process_factory=command, encoding=None
    ) as server:
        yield server.get_port()


async def test_a_guest_with_another_host_key_is_refused() -> None:
    async def nothing(child: asyncssh.SSHServerProcess[bytes]) -> None:
        child.exit(0)

    async with ssh_server(SshKey.new(), nothing) as port, asyncio.timeout(30):
        with pytest.raises(GuestError, match="expected the host key that this guest was given, got another"):
            await connect(port)


async def test_output_without_end_costs_no_memory_and_its_codes_reach_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_MAX_OUTPUT_BYTES", 1 << 20)
    sent_bytes = 64 << 20

    async def flood(child: asyncssh.SSHServerProcess[bytes]) -> None:
        child.stderr.write(CODES.encode())
        for _ in range(sent_bytes >> 16):
            child.stdout.write(b"y" * 65536)
            await child.stdout.drain()
        child.exit(3)

    key = SshKey.new()
    async with ssh_server(key, flood) as port, asyncio.timeout(60):
        guest = await connect(port, key.public)
        tracemalloc.start()
        try:
            result = await guest.run(["yes"], check=False)
            assert tracemalloc.get_traced_memory()[1] < 24 << 20
        finally:
            tracemalloc.stop()
        assert (len(result.stdout), result.status, result.stderr) == (1 << 20, 3, CODES)
        with pytest.raises(CommandFailed, match="expected status 0, got 3") as failed:
            await guest.run(["yes"])
        assert "\x1b" not in str(failed.value)
        await guest.close()


def test_a_file_larger_than_any_is_not_taken() -> None:
    told = ssh._at_most("g0", ssh._MAX_FILE_BYTES)
    told(b"/log", b"log", 10, 1 << 30)
    for copied, total in ((1 << 40, 0), (0, 1 << 40)):
        with pytest.raises(GuestError, match="/log: expected a file of at most 17179869184 bytes, got more"):
            told(b"/log", b"log", copied, total)


# The agent's port, QMP, logs --------------------------------------------------------------------------------------------------------


async def test_an_agent_that_answers_for_ever_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_MAX_ANSWER_BYTES", 100_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"cgroup /x 1\n" * 100)
                await writer.drain()

    server = await asyncio.start_unix_server(answer, tmp_path / "agent")
    agent = Agent("g0")
    await agent.connect(tmp_path / "agent")
    async with asyncio.timeout(30):
        with pytest.raises(GuestError, match="agent: expected at most 100000 bytes before `cgroups`, got more"):
            await agent.ask("cgroups")
    agent.close()
    server.close()


async def test_a_message_of_qmp_without_end_ends_the_connection(tmp_path: Path) -> None:
    async with connected(tmp_path, {}) as (wire, fake, _), asyncio.timeout(60):
        asked = asyncio.create_task(wire.execute("query-status"))
        while len(fake.asked) < 2:
            await asyncio.sleep(0)
        for _ in range(12):
            for writer in fake._writers:
                writer.write(b'"' + b"x" * (1 << 20))
        with pytest.raises(WireBroken):
            await asked


async def test_qmp_names_files_as_qemu_reaches_them_and_logs_them_as_we_do(tmp_path: Path) -> None:
    async with fake_qmp(tmp_path / "qmp", {"blockdev-add": {}}) as fake:
        log = Log(tmp_path / "qmp.jsonl", lambda why: None)
        wire = Monitor("g0", log, lambda *_: None, lambda said: {"filename": "/dev/fdset/1"} if said else said)
        await wire.connect(tmp_path / "qmp")
        await wire.execute("blockdev-add", {"filename": "/root/x"})
        assert fake.asked[-1] == ("blockdev-add", {"filename": "/dev/fdset/1"})
        assert json.loads((tmp_path / "qmp.jsonl").read_text())["arguments"] == {"filename": "/root/x"}
        await wire.close()


def test_a_log_that_somebody_else_fills_says_where_it_was_cut(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", lambda why: None, 1000)
    for _ in range(1000):
        log.add("x" * 99 + "\n")
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 10 and lines[-1] == "[testbed: the log is full, the rest is left out: log]"


# Files that come from anybody -------------------------------------------------------------------------------------------------------

GUEST = "version: 1\nguests:\n  g0:\n    "


@pytest.mark.parametrize(
    "text",
    [
        "disks: {'data,file=/etc/passwd': {type: nvme, size: 1G}}",
        "disks: {data: {type: nvme, size: 1G, serial: 'a,drive=b'}}",
        "disks: {../../etc/passwd: {type: nvme, size: 1G}}",
        "disks: {data: {type: nvme, size: 1G, image: ../../etc/passwd}}",
        "loops: {l0: {backing: ../../etc/passwd, size: 64M}}",
        "loops: {l0: {backing: 'data/$(reboot)', size: 64M}}",
        "cgroups: {/../../x: {}}",
        "image: ../../etc/passwd",
        "image: bookworm,snapshot=off",
        "cpu-model: 'max -drive file=/etc/passwd'",
        'append: ["a\\nb"]',
        "environment: {'A;reboot': x}",
        "networks: {'lan,fd=3': {}}",
        "networks: {../x: {}}",
        "memory: 1G,share=on",
        "disks: {data: {type: 'nvme,x=y', size: 1G}}",
        "disks: {data: {type: nvme, size: 1G, partitions: [{name: 'a b', size: 1M}]}}",
        "filesystems: {'data;reboot': {type: ext4}}",
    ],
)
def test_names_that_would_be_more_than_names_are_mistakes(text: str) -> None:
    with pytest.raises(TopologyError, match=r"x\.yaml:"):
        parse(GUEST + text + "\n", "x.yaml")


async def test_an_image_is_a_disk_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine.img").symlink_to("/etc/passwd")
    wanted = Storage(file=tmp_path / "disk", format="qcow2", size_bytes=1 << 30, image=(tmp_path / "mine.img", "raw"))
    with pytest.raises(
        HostError, match=r"mine\.img: expected an image of a disk or a file system, got a link to /etc/passwd"
    ):
        await disk_files.make_disk_files(wanted)


def test_a_key_of_a_file_does_not_steer_the_terminal_when_it_is_quoted() -> None:
    with pytest.raises(TopologyError) as found:
        parse(GUEST + '"\\e[2Jowned": 1\n', "x.yaml")
    (problem,) = found.value.problems
    assert "owned" in str(problem) and "\x1b" not in str(problem) and "\x1b" not in str(found.value)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch owned']\n", "a: &a [*a, *a]\n", "&a [*a]\n"])
def test_yaml_makes_no_objects_and_no_knots(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TopologyError):
        parse(text, "x.yaml")
    assert not (tmp_path / "owned").exists()


def test_a_file_that_extends_another_file_of_this_machine_learns_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("version: 1\nextends: ../../../../../../etc/passwd\n")
    with pytest.raises(TopologyError) as found:
        load(tmp_path / "x.yaml")
    assert "root:" not in str(found.value)


async def test_words_for_qemu_itself_are_refused_unless_they_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they came past everything that reads files."""
    monkeypatch.setenv("TESTBED_TRUST_QEMU_ARGS", "1")
    factory = GuestFactory.__new__(GuestFactory)
    with pytest.raises(
        UsageError,
        match="nobody checks them: -chardev file,id=x,path=/root/x; expected them from a file that you trust",
    ):
        await factory._machine(GuestModel.model_validate({"qemu-args": ["-chardev", "file,id=x,path=/root/x"]}), None)  # type: ignore[arg-type]  # it comes no further


# What boots a guest -----------------------------------------------------------------------------------------------------------------


def test_a_file_that_was_changed_is_not_used_whatever_its_times_say(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_text("kernel")
    checksums.verify(tmp_path, ("bzImage",))
    checksums.verify(tmp_path, ("bzImage",))
    before = (tmp_path / "bzImage").stat()
    (tmp_path / "bzImage").write_text("KERNEL")
    os.utime(tmp_path / "bzImage", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        HostError, match=r"bzImage: expected the file that was made here .*; remove .*, and the next run makes it again"
    ):
        checksums.verify(tmp_path, ("bzImage",))
    (tmp_path / "bzImage").write_text("kernel")
    checksums.verify(tmp_path, ("bzImage",))
    (tmp_path / "bzImage").unlink()
    with pytest.raises(HostError, match="bzImage: cannot be read: No such file"):
        checksums.verify(tmp_path, ("bzImage",))


def test_a_hash_from_elsewhere_counts_at_the_first_look_as_well(tmp_path: Path) -> None:
    (tmp_path / "root.ext4").write_text("image")
    with pytest.raises(HostError, match=r"expected the file that was made here \(SHA-256 ab\)"):
        checksums.verify(tmp_path, ("root.ext4",), {"root.ext4": "ab"})
    (tmp_path / "seals.json").write_text('{"root.ext4": 3}')
    with pytest.raises(HostError, match=r"seals\.json: expected the hashes of its files"):
        checksums.verify(tmp_path, ("root.ext4",))


@pytest.mark.parametrize("file", ["bzImage", "early/ext4.ko", "modules.ext4"])
async def test_a_kernel_that_was_changed_in_the_cache_is_not_used_wherever_it_came_from(
    tmp_path: Path, file: str
) -> None:
    folder = tmp_path / "kernels" / "built-1"
    (folder / "early").mkdir(parents=True)
    hashes = {}
    for name in ("bzImage", "early/ext4.ko", "modules.ext4"):
        (folder / name).write_text(name)
        hashes[name] = file_sha256(folder / name)
    meta = {
        "release": "6.1",
        "origin": "x",
        "sha256": "1",
        "early_modules": ["ext4.ko"],
        "has_modules": True,
        "hashes": hashes,
    }
    (folder / cache.META).write_text(json.dumps(meta))
    kernel = BuiltKernel(name="mine")
    build_names.save_name(tmp_path, kernel, NamedBuild(folder=folder, origin="x", series=Series.AFTER))
    # Before the first use, too.
    (folder / file).write_text("another")
    with pytest.raises(HostError, match=f"{file}: expected the file that was made here"):
        await kernel_files.fetch(kernel, tmp_path, Silent())
    (folder / file).write_text(file)
    assert (await kernel_files.fetch(kernel, tmp_path, Silent())).release == "6.1"


@pytest.mark.parametrize("file", ["root.ext4", "busybox"])
async def test_an_image_that_was_changed_in_the_cache_is_not_used(tmp_path: Path, file: str) -> None:
    images = paths.shipped("images")
    folder = image.image_folder("bookworm", images, tmp_path)
    folder.mkdir(parents=True)
    for name in ("root.ext4", "busybox"):
        (folder / name).write_text(name)
    hashes = {name: file_sha256(folder / name) for name in ("root.ext4", "busybox")}
    (folder / cache.META).write_text(json.dumps({"sha256": hashes["root.ext4"], "hashes": hashes}))
    assert (await image.build_image("bookworm", images, tmp_path, Silent())).folder == folder
    (folder / file).write_text("another")
    with pytest.raises(HostError, match=f"{file}: expected the file that was made here"):
        await image.build_image("bookworm", images, tmp_path, Silent())


async def test_an_initramfs_that_was_changed_in_the_cache_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_text("busybox")
    kernel = AsyncMock(sha256="1", release="6.1", early_modules=(), has_modules=False)
    root = AsyncMock(busybox=tmp_path / "busybox")
    made = (await boot_files.make_boot_files(kernel, root, tmp_path, Silent())).initramfs
    assert (await boot_files.make_boot_files(kernel, root, tmp_path, Silent())).initramfs == made
    made.write_text("another")
    with pytest.raises(HostError, match="initramfs: expected the file that was made here"):
        await boot_files.make_boot_files(kernel, root, tmp_path, Silent())


def test_memory_that_a_guest_has_written_to_is_noticed_whatever_its_times_say(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(4096))
    before, touched_ns = memory.stat(), ctime_ns(memory)
    assert ctime_ns(memory) == touched_ns
    with memory.open("r+b") as file:
        file.write(b"x")
    os.utime(memory, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ctime_ns(memory) != touched_ns


async def test_a_mirror_that_debian_did_not_sign_is_refused(tmp_path: Path) -> None:
    suite = tmp_path / "mirror" / "dists" / "bookworm"
    suite.mkdir(parents=True)
    (suite / "Release").write_text(
        "Origin: Debian\nSuite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: amd64\n"
    )
    apt = PrivateApt(tmp_path / "apt", Mirror(main=f"file:{tmp_path}/mirror", security="file:/none"), ("bookworm",))
    with (
        Silent().task("index") as task,
        pytest.raises(HostError, match="does not serve bookworm with a good signature"),
    ):
        await apt.update(task)


async def test_what_qemu_could_have_put_in_the_place_of_a_disk_is_not_followed(tmp_path: Path) -> None:
    secret, link, pipe = tmp_path / "secret", tmp_path / "data.raw", tmp_path / "other.raw"
    secret.write_text("secret")
    link.symlink_to(secret)
    os.mkfifo(pipe)
    for planted in (link, pipe):
        with pytest.raises(HostError):
            await Export.start("data", Settings(), file=planted, log=tmp_path / "log", host=None, on_end=pytest.fail)
        with pytest.raises(HostError, match="expected a disk's file"):
            await snapshot_files.copy_disk(planted, tmp_path / "copies" / "data.raw")
    for kind in ("raw", "qcow2"):
        with pytest.raises(HostError, match="cannot be made"):
            await disk_files.make_disk_files(Storage(file=link, format=kind, size_bytes=4096))
    assert secret.read_text() == "secret" and not (tmp_path / "copies").exists()


def test_a_runtime_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o777)
    assert paths._make_private(tmp_path / "own") and stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "own")
    assert not paths._make_private(tmp_path / "link")
    if os.geteuid() == 0:  # only root can make one that belongs to somebody else
        os.chown(tmp_path / "own", 65534, 65534)
        assert not paths._make_private(tmp_path / "own")


def test_all_sessions_of_an_account_wait_in_one_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = tmp_path / "account"
    for folder in (account, tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    monkeypatch.setattr(paths, "_account_runtime", lambda: account)
    monkeypatch.setattr(paths, "_LONGEST_SOCKET_FOLDER", 4096)  # pytest's folders have long names
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("TESTBED_ADMISSION", raising=False)
    found = []
    for runtime in ("a", "b"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / runtime))
        found.append(paths.folders())
    assert [one.runtime for one in found] == [tmp_path / "a" / "testbed", tmp_path / "b" / "testbed"]
    assert {one.admission for one in found} == {account / "testbed" / "admission"}
    assert stat.S_IMODE((account / "testbed").stat().st_mode) == 0o700
    monkeypatch.setenv("TESTBED_ADMISSION", str(tmp_path / "own"))
    assert paths.folders().admission == tmp_path / "own"


# The document -----------------------------------------------------------------------------------------------------------------------


def test_each_claim_of_the_threat_model_names_tests_that_are_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"
    claims = [row for row in text.split("| claim |")[1].splitlines() if row.startswith("| ")]
    assert [row for row in claims if "`tests/" not in row] == []
