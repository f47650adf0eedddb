"""The pytest plugin as other projects use it: a pytest process of their own, in their own folder, on real guests."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from testbed.host import paths

DISK = "version: 1\nguests: {g0: {disks: {data: {type: virtio-blk, size: 64M}}}}\n"
FAILS = """\
import pytest


async def test_of_a_command(vm, cgroup):
    async with cgroup("small", {"memory.max": "32M", "memory.swap.max": 0}) as small:
        await small.run("head -c 16M /dev/zero >/dev/shm/file")
        await vm.run("echo a word of the kernel >/dev/kmsg; printf 'it \\033[31msays'; exit 7")


async def test_of_something_else(vm):
    await vm.run("uname -s")
    raise AssertionError("nothing that the guest knows of")


async def test_of_wrong_uses(vm, cgroup, hardware, tmp_path):
    said = []
    for work in (
        vm.get("/nowhere"),
        vm.put("/nowhere/on/this/machine", "/root/x"),
        vm.run("sleep 100", timeout_s=1),
        hardware.inject("data", "raed=EIO"),
        hardware.throttle("nowhere", iops_total=100),
    ):
        try:
            await work
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    print("\\n".join(said))
    async with cgroup("x", {"memory.maxx": "1M"}):
        pass


async def test_of_a_panic(vm):
    await vm.run("echo c >/proc/sysrq-trigger")


@pytest.mark.testbed_topology("version: 1\\nguests: {a: {networks: {lan: {}}}, b: {networks: {lan: {}}}}\\n")
async def test_of_two(vms):
    assert set(vms) == {"a", "b"}
    await vms["b"].run("false")


@pytest.mark.testbed_topology("version: 1\\nguests: {a: {}, b: {}}\\n")
async def test_of_one_of_two(vm):
    pass


async def test_that_passes(vm):
    await vm.run("true")
"""
KEEPS = """\
async def test_replugs(vm, hardware):
    number = vm.disks["data"].number
    await vm.run("losetup /dev/loop7 /etc/passwd")
    await hardware.unplug("data")
    await hardware.plug("data")
    assert (await vm.run(f"blockdev --getsize64 {vm.disks['data']}")).stdout.strip() == str(vm.disks["data"].size_bytes)
    assert (await vm.run(f"lsblk -n -o MAJ:MIN {vm.disks['data']}")).stdout.split() == [vm.disks["data"].number]
    await vm.run("touch /root/left-by-the-test")
    assert number == "", "this fails on purpose"


async def test_that_passes(vm):
    pass
"""
STRICT = """\
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("number", range(4))
async def test_clones(vm, number):
    assert (await vm.run("echo", str(number))).stdout == f"{number}\\n"


class TestInOneLoop:
    @pytest.fixture(scope="class")
    def seen(self):
        return []

    @pytest.mark.asyncio(loop_scope="class")
    async def test_first(self, vm, seen):
        seen.append(vm.name)
        await vm.run("true")

    @pytest.mark.asyncio(loop_scope="class")
    async def test_second(self, vm, cgroup):
        async with cgroup("a") as a:
            await a.run("true")
"""
HELD = """\
import asyncio
import pytest


@pytest.mark.testbed_timeout(120)
async def test_held(vm):
    await vm.run("touch /root/before")
    assert not vm.release
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    status: int
    out: str

    def section(self, test: str, guest: str = "g0") -> str:
        """Return a guest's section in the report of a failed test."""
        report = re.search(rf"_ {test}\[\S+ _+\n(.*?)(?=\n_{{5,}} test_|\n={{5,}})", self.out, re.DOTALL)
        assert report, self.out
        found = re.search(rf"-+ testbed: guest {guest} -+\n(.*?)(?=\n-{{5,}} |\Z)", report[1], re.DOTALL)
        assert found, report[1]
        return found[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A user's project in `folder`, with runtime and state folders of its own."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    async def run(self, *words: str, stdin: str = "") -> Ran:
        """Run `python -m WORDS`."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *words),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": "200"} | self.env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await child.communicate(stdin.encode())
        return Ran(status=child.returncode or 0, out=out.decode())

    async def pytest(self, text: str, *options: str, mode: str = "auto", stdin: str = "") -> Ran:
        (self.folder / "pytest.ini").write_text(
            f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
        )
        (self.folder / "topology.yaml").write_text(DISK)
        (self.folder / "test_theirs.py").write_text(text)
        return await self.run("pytest", "-p", "no:randomly", "--testbed-artifacts", "logs", *options, stdin=stdin)

    async def kept(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads((await self.run("testbed", "ps", "--json")).out)
        return found


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    # The length of a socket's path is limited.
    with tempfile.TemporaryDirectory(prefix="tb-") as runtime:
        folder = tmp_path / "their project"
        folder.mkdir()
        own = {
            "XDG_RUNTIME_DIR": runtime,
            "TESTBED_ADMISSION": f"{runtime}/admission",
            "TESTBED_STATE": str(tmp_path / "state"),
        }
        yield Suite(folder=folder, env=own)
        assert not list(Path(runtime).glob("testbed/vms/*")) and not list(Path(runtime).glob("testbed/net-*"))


@pytest.mark.slow
async def test_the_report_of_a_failed_test_describes_its_guests(suite: Suite) -> None:
    done = await suite.pytest(FAILS)
    assert done.status == 1 and "5 failed, 1 passed, 1 error" in done.out
    assert "site-packages/testbed" not in done.out and "/testbed/api/" not in done.out, (
        "frames of ours say nothing to whoever reads it"
    )

    said = done.section("test_of_a_command")
    assert "failed command: echo a word of the kernel" in said and "[status 7, " in said
    assert "    it says\n" in said and "\x1b" not in done.out, "what a guest prints steers no terminal"
    assert (
        "a word of the kernel\n" in said.partition("kernel log since the guest was ready")[2]
        and "Linux version" not in said
    )
    counted = next(line for line in said.splitlines() if line.strip().startswith("small:"))
    assert "memory.current=" in counted and "shmem=16777216" in counted
    for title in ("console", "QMP log"):
        path = Path(re.search(rf"^{title}: (.+)$", said, re.MULTILINE)[1])  # type: ignore[index] # no match is a failure, too
        assert path.stat().st_size > 0 and path.is_relative_to(suite.folder / "logs")
    assert list((suite.folder / "logs").glob("*test_of_a_command*/g0/dmesg.txt"))

    assert "last command: uname -s [status 0, " in done.section("test_of_something_else")
    for wrong in (
        "GuestError: guest g0: copying /nowhere out of it: No such file",
        "UsageError: /nowhere/on/this/machine: expected a file or a folder to copy into the guest, found nothing",
        "CommandFailed: guest g0: `sleep 100`: expected status 0, got none within 1 s",
        "UsageError: disk data: operation: expected one of read, write, flush, discard, got 'raed'",
        "memory.maxx: the kernel does not take '1M'",
    ):
        assert wrong in done.out
    assert re.search(r"^UsageError: .*nowhere", done.out, re.MULTILINE)
    assert "`vm` expects a topology of one guest, this one has a, b: take `vms`" in done.out
    assert not list((suite.folder / "logs").glob("*test_of_one_of_two*"))
    panic = done.section("test_of_a_panic")
    assert "the guest does not answer" in panic and "sysrq triggered crash" in panic and "[did not end]" in panic
    assert "failed command: false [status 1, " in done.section("test_of_two", "b")
    assert "no command was run" in done.section("test_of_two", "a")


@pytest.mark.slow
async def test_the_guest_of_a_failed_test_is_kept(suite: Suite) -> None:
    done = await suite.pytest(KEEPS, "--testbed-keep")
    assert done.status == 1 and "1 failed, 1 passed" in done.out and "this fails on purpose" in done.out
    said = done.section("test_replugs")
    (kept,) = await suite.kept()
    assert kept["state"] == "ready" and f"enter it: testbed ssh {kept['name']}; " in said
    assert (
        Path(kept["evidence"]).is_relative_to(suite.folder / "logs")
        and (Path(kept["evidence"]) / "console.log").exists()
    )
    entered = await suite.run(
        "testbed", "ssh", kept["name"], "--", "ls /root/left-by-the-test; losetup -n -O BACK-FILE /dev/loop7"
    )
    assert entered.out == "/root/left-by-the-test\n/etc/passwd\n"
    assert (await suite.run("testbed", "down", kept["name"])).status == 0
    assert await suite.kept() == []


@pytest.mark.slow
async def test_strict_mode_and_workers_share_one_template(suite: Suite, tmp_path: Path) -> None:
    cache, own = tmp_path / "cache", paths.folders().cache
    cache.mkdir()
    for name in ("images", "initramfs", "kernels", "probes"):
        (cache / name).symlink_to(own / name)
    suite.env["TESTBED_CACHE"] = str(cache)
    done = await suite.pytest(STRICT, "-n", "2", "--junitxml", "junit.xml", mode="strict")
    assert done.status == 0 and "6 passed" in done.out, done.out
    (template,) = (path for path in (cache / "templates").iterdir() if path.is_dir())
    assert done.out.count("template") >= 1, "what takes long is told"
    assert len(re.findall(r"testbed \[gw\d\]: .*template.* \.\.\.", done.out)) == 1, done.out
    del template


@pytest.mark.slow
async def test_the_guest_is_alive_in_a_debugger(suite: Suite) -> None:
    there = "p asyncio.run(vm.run('ls /root/before')).stdout.strip() + ' is there'\nq\n"
    done = await suite.pytest(HELD, "--pdb", stdin=there)
    assert "(Pdb)" in done.out and "'/root/before is there'" in done.out, done.out
