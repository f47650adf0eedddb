"""Long-lived guests, as a user runs them: each command is a process of its own."""

import asyncio
import json
import os
import pty
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.host import registry
from testbed.host.control_client import ControlClient

SAVABLE = """\
version: 1
guests:
  one:
    disks:
      data: {type: virtio-blk, size: 512M, throttle: {iops-total: 5000}}
      more: {type: virtio-scsi, size: 512M, format: qcow2}
    filesystems:
      more: {type: ext4}
    loops:
      l0: {backing: data/disk.img, size: 24M}
    cgroups:
      a: {io.max: {data: {rbps: 1M}}}
"""
PAIR = "version: 1\nguests:\n  x: {networks: {lan: {}}}\n  y: {networks: {lan: {}}}\n"
NVME = "version: 1\nguests:\n  n: {disks: {fast: {type: nvme, size: 256M}}}\n"


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Commands:
    """Runs `testbed` with its own runtime and state folders, so that it does not see other guests."""

    folder: Path
    env: dict[str, str]

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "testbed", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.env,
            cwd=self.folder,
        )

    async def __call__(self, *words: str, stdin: str = "", status: int | None = 0) -> Ended:
        child = await self.start(*words)
        out, err = await child.communicate(stdin.encode())
        ended = Ended(child.returncode or 0, out.decode(), err.decode())
        assert status is None or ended.status == status, ended
        assert "Traceback" not in ended.err
        return ended

    async def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((await self("ps", "--json")).out)
        return found

    def file(self, text: str, name: str = "topology.yaml") -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    @property
    def runtime(self) -> Path:
        return Path(self.env["XDG_RUNTIME_DIR"]) / "testbed"


@pytest.fixture
async def testbed(tmp_path: Path) -> AsyncIterator[Commands]:
    # The length of a socket's path is limited.
    with tempfile.TemporaryDirectory(prefix="tb-") as runtime:
        checkout = str(Path(__file__).parents[3])
        own = {
            "XDG_RUNTIME_DIR": runtime,
            "TESTBED_ADMISSION": f"{runtime}/admission",
            "TESTBED_STATE": str(tmp_path / "state"),
        }
        env = {**os.environ, **own, "PYTHONPATH": checkout}
        run = Commands(tmp_path, env)
        yield run
        await run("down", "--all", status=None)
        assert not list(run.runtime.glob("vms/*")) and not list(run.runtime.glob("net-*"))


@pytest.mark.slow
async def test_a_guest_stays_is_entered_saved_restored_forked_and_ended(testbed: Commands) -> None:
    (up,) = json.loads((await testbed("up", testbed.file(SAVABLE), "--json", "-q")).out)
    assert up["state"] == "ready" and up["disks"] == ["data", "more"]
    again = await testbed("up", testbed.file(SAVABLE), "-q", status=2)
    assert "one: a guest of this name is there already" in again.err
    assert (await testbed("ps")).out.splitlines()[1].split()[:2] == ["one", "ready"]
    # The refused command has left no run in the list.
    (run,) = json.loads((await testbed("runs", "--json")).out)["runs"]
    assert (run["command"][0], run["verdict"], run["going_on"]) == ("up", None, True)

    # Entered as a user would: arguments, a line for the shell, the command's own status, files, the serial console.
    assert (await testbed("ssh", "one", "--", "echo", "a  b", "$HOME")).out == "a  b $HOME\n"
    assert (await testbed("ssh", "one", "--", "echo $HOME; exit 7", status=7)).out == "/root\n"
    # A user's command is not protected from the guest's OOM killer; the process that runs it is.
    entered = (
        await testbed("ssh", "one", "--", "cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj; env")
    ).out.split()
    assert entered[:2] == ["0", "-1000"] and not any(word.startswith("SSH_ORIGINAL") for word in entered)
    assert (await testbed("ssh", "one", "--", "cat /sys/fs/cgroup/a/io.max")).out.split()[1] == "rbps=1048576"
    (testbed.folder / "sent").write_text("hello\n")
    await testbed("cp", "sent", "one:/root/got")
    await testbed("cp", "one:/root/got", "back")
    assert (testbed.folder / "back").read_text() == "hello\n"
    shell = (await testbed("console", "one", stdin="id; cat /proc/self/oom_score_adj\n")).out
    assert "uid=0(root)" in shell and "\n0\n" in shell.replace("\r", "")
    assert "/dev/loop0" in (await testbed("logs", "one", "--what", "ssh")).out or (await testbed("logs", "one")).out

    # A snapshot has the contents of memory, of the root disk, of a raw disk and of a qcow2.
    await testbed(
        "ssh", "one", "--", "for place in /dev/shm /root /mnt/data /mnt/more; do echo before >$place/mark; done"
    )
    await testbed("snapshot", "one", "good")
    assert "one has a snapshot good already" in (await testbed("snapshot", "one", "good", status=2)).err
    await testbed("ssh", "one", "--", "rm /dev/shm/mark /root/mark /mnt/data/mark; umount /mnt/more")
    marks = "cat /dev/shm/mark /root/mark /mnt/data/mark /mnt/more/mark; losetup -n -O BACK-FILE /dev/loop0"
    there = "before\n" * 4 + "/mnt/data/disk.img\n"
    await testbed("restore", "one", "good")
    assert (await testbed("ssh", "one", "--", marks)).out == there
    await testbed("fork", "one", "two", "--from", "good", "-q")
    assert (await testbed("ssh", "two", "--", f"hostname; {marks}")).out == f"two\n{there}"
    assert (await testbed("snapshot", "one")).out == "good\n"

    # Reads through the loop are counted for its disk and for the reader's cgroup.
    read = "echo 0 >/sys/fs/cgroup/a/cgroup.procs; exec dd if=/dev/loop0 of=/dev/null bs=64k iflag=direct"
    reading = asyncio.create_task(testbed("ssh", "one", "--", read))
    shares: list[tuple[str, float]] = []
    while not reading.done():
        found = json.loads((await testbed("top", "--json", "--every", "1", "-n", "1")).out)
        shares += [
            share for load in found if (load["guest"], load["disk"]) == ("one", "data") for share in load["shares"]
        ]
    await reading
    assert "a" in [group for group, _ in shares]

    await testbed("down", "two")
    assert [record["name"] for record in await testbed.records()] == ["one"]
    assert "two: there is no such guest; there are one" in (await testbed("ssh", "two", status=2)).err

    # Concurrent commands take turns, and one whose guest is ended meanwhile gets an error.
    saving = (testbed("snapshot", "one", "next", status=None) for _ in range(2))
    ended = await asyncio.gather(testbed("restore", "one", "good"), *saving)
    assert sorted(command.status for command in ended) == [0, 0, 2]
    assert any("one has a snapshot next already" in command.err for command in ended)
    restoring = asyncio.create_task(testbed("restore", "one", "next", status=None))
    # Reads the record itself: a command takes longer to start than a guest takes to be restored.
    folder = testbed.runtime / "vms" / "one"
    while (record := registry.read_record(folder)) is None or record.state == registry.READY:
        assert not restoring.done(), restoring.result()
        await asyncio.sleep(0.01)
    await ControlClient(registry.VmHandle(folder=folder, record=record)).down()
    assert "one was ended by another command before this was done" in (await restoring).err
    assert "Traceback" not in Path(up["evidence"], "supervisor.log").read_text()


@pytest.mark.slow
async def test_guests_of_one_file_reach_each_other_from_processes_of_their_own(testbed: Commands) -> None:
    await testbed("up", testbed.file(PAIR), "-q", "--name", "p")
    greeting = await testbed("ssh", "p-x", "--", 'bash -c "exec 3<>/dev/tcp/y/22 && head -n 1 <&3"')
    assert greeting.out.startswith("SSH-2.0-dropbear")
    await testbed("down", "p-x", "p-y")
    assert await testbed.records() == []


@pytest.mark.slow
async def test_a_guest_that_panics_is_remembered_and_one_whose_supervisor_is_killed_is_gone(testbed: Commands) -> None:
    await testbed("up", testbed.file(NVME), "-q")
    refused = await testbed("snapshot", "n", "never", status=None)
    # A future QEMU may be able to.
    assert refused.status == 0 or ("QEMU" in refused.err and "fast (nvme)" in refused.err)
    await testbed("ssh", "n", "--", "echo it goes on")
    await testbed("ssh", "n", "--", "echo c >/proc/sysrq-trigger", status=None)
    while (record := (await testbed.records())[0])["state"] == "ready":
        await asyncio.sleep(0.2)
    assert record["state"] == "lost" and record["why"].startswith("panic on its console: ")
    assert "expected a guest that is ready, this one is lost: panic" in (await testbed("ssh", "n", status=2)).err
    assert "sysrq triggered crash" in (await testbed("logs", "n")).out
    await testbed("down", "n")

    (up,) = json.loads((await testbed("up", testbed.file(NVME), "--json", "-q")).out)
    os.kill(up["supervisor"], signal.SIGKILL)
    async with asyncio.timeout(60):
        # It takes a moment to end; until then the guest is listed.
        while not (listed := await testbed("ps")).err:
            await asyncio.sleep(0.1)
        while Path(f"/proc/{up['qemu']}/exe").exists():
            await asyncio.sleep(0.1)
    assert (
        listed.err.startswith("n: its supervisor was killed, and the guest ended with it; its logs: ")
        and listed.out == ""
    )
    assert await testbed.records() == []


@pytest.mark.slow
async def test_a_guest_that_does_not_get_ready_takes_its_siblings_along(testbed: Commands) -> None:
    broken = PAIR.replace(
        "y: {networks: {lan: {}}}", "y: {networks: {lan: {}}, append: [init=/nowhere, rdinit=/nowhere]}"
    )
    ended = await testbed("up", testbed.file(broken), "-q", "--cold", status=2)
    assert "guest y: " in ended.err and "its logs: " in ended.err
    assert await testbed.records() == []


@pytest.mark.slow
async def test_mistakes_on_the_command_line(testbed: Commands) -> None:
    for words, said in (
        (("ssh", "nobody"), "nobody: there is no such guest; start one with: testbed up FILE"),
        (("down",), "down: expected names of guests, or --all, got neither"),
        (("down", "a", "--all"), "got both"),
        (("cp", "a", "b"), "cp: expected one guest, as VM:PATH, got none"),
        (("cp", "a:/b"), "cp: expected what to copy, and where to"),
        (("restore", "a", "b"), "a has no snapshot 'b'; make one with: testbed snapshot a b"),
        (("snapshot", "a", "B C"), "snapshot 'B C': expected small letters"),
        (
            ("up", testbed.file(NVME), "--name", "No"),
            "expected a guest's name of small letters, digits and dashes, beginning with a letter",
        ),
        (("up", testbed.file("version: 1\nguests: {g: {cpu: 1}}\n", "wrong.yaml")), "did you mean 'cpus'?"),
    ):
        assert said in (await testbed(*words, status=2)).err
    assert await testbed.records() == []


@pytest.mark.slow
async def test_a_guest_that_stands_still_says_so_and_how_it_goes_on(testbed: Commands) -> None:
    (up,) = json.loads((await testbed("up", testbed.file(NVME), "--json", "-q")).out)

    async def shown(why: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while (record := (await testbed.records())[0])["why"] != why:
                await asyncio.sleep(0.1)
        return record

    # A debugger that stopped the guest and was killed.
    debugging = await testbed.start("gdb", "n")
    record = await shown("stopped, by a debugger or by `stop` of QMP")
    debugging.kill()
    await debugging.wait()
    assert record["state"] == "ready" and record["resume_with"] == "testbed resume n"
    assert "resume n" in " ".join((await testbed("ps")).out.split())
    for words in (("ssh", "n"), ("cp", "n:/etc/hostname", "."), ("console", "n"), ("snapshot", "n", "now")):
        ended = await testbed(*words, status=2)
        assert (
            "n stands still: stopped, by a debugger or by `stop` of QMP; let it go on with: testbed resume n"
            in ended.err
        )
    assert [load["disk"] for load in json.loads((await testbed("top", "--json", "--every", "0.2", "-n", "1")).out)] == [
        "fast"
    ]
    await testbed("resume", "n")
    assert (await testbed("ssh", "n", "--", "echo on")).out == "on\n"
    assert (await shown(""))["resume_with"] == ""

    # A process that is stopped by a signal.
    for which, words in (("qemu", ("hardware", "n")), ("supervisor", ("down", "n"))):
        whose = "QEMU" if which == "qemu" else "supervisor"
        os.kill(up[which], signal.SIGSTOP)
        try:
            said = (
                f"n stands still: its {whose} (pid {up[which]}) is stopped by a signal; "
                f"let it go on with: kill -CONT {up[which]}"
            )
            await shown(f"its {whose} (pid {up[which]}) is stopped by a signal")
            assert said in (await testbed(*words, status=2)).err and said in (await testbed("ssh", "n", status=2)).err
            top = await testbed("top", "--json", "--every", "0.2", "-n", "1")
            assert json.loads(top.out) == [] and top.err.count(said) == 1
        finally:
            os.kill(up[which], signal.SIGCONT)

    # A console ends with a reason when its guest ends.
    typing = await testbed.start("console", "n")
    assert typing.stdin is not None and typing.stdout is not None and typing.stderr is not None
    typing.stdin.write(b"echo $((6 * 7))\n")
    async with asyncio.timeout(60):
        await typing.stdout.readuntil(b"42")
    await testbed("down", "n")
    assert "n: its console has ended" in (await typing.stderr.read()).decode()
    await typing.communicate()
    assert typing.returncode == 2


@pytest.mark.slow
async def test_the_console_is_left_by_a_key(testbed: Commands) -> None:
    await testbed("up", testbed.file(NVME), "-q")
    ours, theirs = pty.openpty()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "testbed", "console", "n"), stdin=theirs, stdout=theirs, stderr=theirs, env=testbed.env
    )
    os.close(theirs)
    seen = b""

    async def until(words: bytes) -> None:
        nonlocal seen
        while words not in seen:
            seen += await asyncio.to_thread(os.read, ours, 4096)

    await until(b"# ")
    os.write(ours, b"echo $((6 * 7))\r")
    await until(b"42\r\n")
    os.write(ours, b"\x1d")
    assert await child.wait() == 0
    os.close(ours)
    # Input that no event loop can wait for is typed as well.
    script = Path(testbed.file("echo $((6 * 9))\n", "script"))
    for typed, said in ((script, "54"), (Path("/dev/null"), "")):
        with typed.open() as file:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "testbed", "console", "n"),
                stdin=file,
                stdout=asyncio.subprocess.PIPE,
                env=testbed.env,
            )
            out, _ = await child.communicate()
        assert child.returncode == 0 and said in out.decode()
