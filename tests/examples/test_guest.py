"""A guest, its disks and loops, and changes of its hardware. Each test has a fresh guest."""

import time
from pathlib import Path

import pytest

from testbed import GuestError, Hardware, Qmp, UsageError, Vm


async def test_commands(vm: Vm) -> None:
    assert (await vm.run("uname", "-r")).stdout.strip() == vm.release
    assert (await vm.run("wc -c", input="hello")).stdout.strip() == "5"
    assert (await vm.run("exit 3", check=False)).status == 3
    echoed = await vm.run("cat", input=b"\0\xff\n" * 20_000)
    assert echoed.stdout_bytes == b"\0\xff\n" * 20_000 and not echoed.truncated
    long = "#" * 9_000  # longer than the SSH server accepts as a command
    assert (await vm.run(f"{long}\nread -r a; read -r b; echo $b$a", input="1\n2\n3\n")).stdout == "21\n"
    assert (await vm.run("head -c 9M /dev/zero")).truncated


async def test_files_go_both_ways_as_they_are(vm: Vm, tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "run").write_text("#!/bin/sh\necho ran $1\n")
    (tmp_path / "tool" / "run").chmod(0o755)
    await vm.put(tmp_path / "tool", "/opt/tool")
    assert (await vm.run("/opt/tool/run", "a b")).stdout == "ran a b\n"
    await vm.put(b"\0\xff", "/root/bytes", mode=0o600)
    assert await vm.get("/root/bytes") == b"\0\xff"
    await vm.get("/opt/tool", tmp_path / "back")
    assert (tmp_path / "back" / "run").read_bytes() == (tmp_path / "tool" / "run").read_bytes()

    # Links, holes, modes of existing folders, and files of unknown size.
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    (here / "sub").chmod(0o700)
    (here / "file").write_text("a file")
    (here / "hard").hardlink_to(here / "file")
    (here / "soft").symlink_to("sub/../file")
    with (here / "holes").open("wb") as file:
        file.write(b"begin")
        file.truncate(256 << 20)
    stats = (
        "stat -c '%a %F' /tmp /lib; stat -c %s /tmp/holes /tmp/alone; du -sk /tmp/holes /tmp/alone; "
        "cat /tmp/soft; stat -c %h /tmp/hard"
    )
    before = (await vm.run("stat -c '%a %F' /tmp /lib")).stdout.splitlines()
    await vm.put(here / "file", "/tmp")
    await vm.put(here, "/tmp")
    await vm.put(here / "holes", "/tmp/alone")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "x").write_text("x")
    await vm.put(tmp_path / "lib", "/lib")
    found = (await vm.run(stats)).stdout.splitlines()
    assert found[:2] == before
    assert found[2:4] == [str(256 << 20)] * 2
    assert all(int(line.split()[0]) < 1024 for line in found[4:6])
    assert found[6:] == ["a file2"]
    with pytest.raises(UsageError, match="expected the path of a file for bytes"):
        await vm.put(b"bytes", "/tmp")

    await vm.run(
        "mkfifo /tmp/sub/pipe; ln -s /etc/passwd /tmp/sub/out; mkdir /root/got; "
        "cp -a /tmp/hard /tmp/soft /tmp/file /tmp/sub /root/got"
    )
    with pytest.raises(
        GuestError, match=r"what can only be in the guest .*: .*sub/pipe \(a pipe\), sub/out \(a link to '/etc/passwd'"
    ):
        await vm.get("/root/got", tmp_path / "got")
    assert (tmp_path / "got" / "soft").readlink() == Path("sub/../file") and (tmp_path / "got" / "hard").samefile(
        tmp_path / "got" / "file"
    )
    await vm.get("/tmp/alone", tmp_path / "got")
    alone = (tmp_path / "got" / "alone").stat()
    assert alone.st_size == 256 << 20 and alone.st_blocks * 512 < 1 << 20
    assert b"MemTotal" in await vm.get("/proc/meminfo")
    assert await vm.get("/etc/os-release") == (await vm.run("cat /etc/os-release")).stdout_bytes  # a link
    with pytest.raises(GuestError, match="expected a file or a folder, got a block special file"):
        await vm.get(vm.disks["data"].path)


async def test_loops_stand_on_their_files(vm: Vm) -> None:
    listed = await vm.run("losetup", "--noheadings", "--output", "BACK-FILE", str(vm.loops["l0"]))
    assert listed.stdout.strip() == vm.loops["l0"].backing_file
    assert vm.loops["l0"].disks == ("data",)


async def test_a_slow_disk_is_slow(vm: Vm, hardware: Hardware) -> None:
    await hardware.throttle("data", iops_total=50)
    started = time.monotonic()
    await vm.run(f"dd if={vm.disks['data']} of=/dev/null bs=4k count=60 iflag=direct")
    # QEMU lets a burst of a tenth of a second pass.
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
