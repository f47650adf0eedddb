"""A guest, its disks and loops, and what its hardware is made to do. Each test has a fresh one."""

import time
from pathlib import Path

import pytest

from testbed import Hardware, Qmp, Vm


async def test_commands(vm: Vm) -> None:
    assert (await vm.run("uname", "-r")).stdout.strip() == vm.release
    assert (await vm.run("wc -c", input="hello")).stdout.strip() == "5"
    assert (await vm.run("exit 3", check=False)).status == 3


async def test_files_go_both_ways(vm: Vm, tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "run").write_text("#!/bin/sh\necho ran $1\n")
    (tmp_path / "tool" / "run").chmod(0o755)
    await vm.put(tmp_path / "tool", "/opt/tool")
    assert (await vm.run("/opt/tool/run", "a b")).stdout == "ran a b\n"
    await vm.put(b"\0\xff", "/root/bytes", mode=0o600)
    assert await vm.get("/root/bytes") == b"\0\xff"
    await vm.get("/opt/tool", tmp_path / "back")
    assert (tmp_path / "back" / "run").read_bytes() == (tmp_path / "tool" / "run").read_bytes()


async def test_loops_stand_on_their_files(vm: Vm) -> None:
    listed = await vm.run("losetup", "--noheadings", "--output", "BACK-FILE", str(vm.loops["l0"]))
    assert listed.stdout.strip() == vm.loops["l0"].backing_file
    assert vm.loops["l0"].disks == ("data",)


async def test_a_slow_disk_is_slow(vm: Vm, hardware: Hardware) -> None:
    await hardware.throttle("data", iops_total=50)
    started = time.monotonic()
    await vm.run(f"dd if={vm.disks['data']} of=/dev/null bs=4k count=60 iflag=direct")
    # QEMU lets the first tenth of a second pass at once.
    assert time.monotonic() - started >= 1.0


async def test_an_error_reaches_the_guest_and_qemu_tells_of_it(vm: Vm, hardware: Hardware, qmp: Qmp) -> None:
    await hardware.inject("data", "read=EIO,count=1")
    async with qmp.events("BLOCK_IO_ERROR") as errors:
        failed = await vm.run(f"dd if={vm.disks['data']} of=/dev/null bs=4k count=1 iflag=direct", check=False)
        assert failed.status == 1 and (await errors.next())["data"]["operation"] == "read"


async def test_a_disk_goes_and_comes(vm: Vm, hardware: Hardware) -> None:
    await hardware.unplug("data", surprise=True)
    assert (await vm.run("test", "-e", "/dev/disk", check=False)).status == 1
    await hardware.plug("data")
    await vm.run(f"blockdev --getsize64 {vm.disks['data']}")


@pytest.mark.testbed_requires(tool="fio", module="loop", config="CONFIG_BLK_CGROUP", qemu=(">=6.0", "nvme"))
async def test_what_is_required_is_there(vm: Vm) -> None:
    await vm.run("fio --version")


@pytest.mark.testbed_requires(module="no_such_module", config="NO_SUCH_OPTION")
async def test_what_is_missing_skips(vm: Vm) -> None:
    raise AssertionError("this test must not run")
