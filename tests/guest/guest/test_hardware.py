"""Disks whose limits, delays, size and presence are changed while their guest runs, seen from the guest."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.guest import hardware_control
from testbed.guest.disk_control import DiskCondition
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.hardware.faults import Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.throttle import Throttle
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from tests.support.disk_guest import MODEL, dd, nodes, reads

KINDS = ("virtio", "nvme", "scsi", "nowhere")


@pytest.fixture
async def guest(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> AsyncIterator[Guest]:
    async with factory.guest("g0", MODEL, kernel, logs) as started:
        yield started


@pytest.mark.slow
async def test_limits_of_every_kind_of_disk_can_be_changed_and_removed(guest: Guest) -> None:
    for name in KINDS:
        # 50 a second; QEMU lets those of the first tenth of a second pass at once.
        await guest.hardware.throttle(name, Throttle(iops_total=50))
        assert (await guest.hardware.condition(name)).throttle == Throttle(iops_total=50)
        assert await reads(guest, name, 60) >= 1.0
        await guest.hardware.throttle(
            name, Throttle(iops_read=100, iops_read_max=200, iops_read_max_length=3, bps_write=1 << 20)
        )
        assert (await guest.hardware.condition(name)).throttle.iops_read_max_length == 3
        await guest.hardware.throttle(name, Throttle())
        assert (await guest.hardware.condition(name)) == DiskCondition(throttle=Throttle())


@pytest.mark.slow
async def test_every_kind_of_disk_can_be_delayed_and_keeps_its_data(guest: Guest) -> None:
    for name in KINDS:
        path = guest.disks[name].path
        await guest.script(
            f"head -c 8M /dev/urandom >/dev/shm/data; dd if=/dev/shm/data of={path} bs=1M oflag=direct status=none"
        )
        await guest.hardware.delay(name, Latency(read_us=50_000, write_us=1000))
        assert f"late-{name}" in await nodes(guest)
        assert await reads(guest, name, 20) >= 1.0
        if name != "nowhere":
            await guest.script(f"dd if={path} bs=1M count=8 iflag=direct status=none | cmp - /dev/shm/data")
            await guest.script(f"dd if=/dev/shm/data of={path} bs=1M skip=4 seek=8 oflag=direct conv=fsync status=none")
        assert (await guest.hardware.condition(name)).latency.read_us == 50_000
        await guest.hardware.delay(name, NO_DELAY)
        assert f"late-{name}" not in await nodes(guest)
        if name != "nowhere":
            await guest.script(
                "tail -c 4M /dev/shm/data >/dev/shm/tail; "
                f"dd if={path} bs=1M skip=8 count=4 status=none | cmp - /dev/shm/tail"
            )


@pytest.mark.slow
async def test_a_qcow2_disk_grows_while_it_is_delayed(guest: Guest) -> None:
    path = guest.disks["copied"].path
    await guest.hardware.delay("copied", Latency(read_us=1000, write_us=1000))
    await guest.script(
        f"head -c 8M /dev/urandom >/dev/shm/data; dd if=/dev/shm/data of={path} bs=1M oflag=direct status=none"
    )
    await guest.script(f"dd if={path} bs=1M count=8 iflag=direct status=none | cmp - /dev/shm/data")
    await guest.hardware.delay("copied", NO_DELAY)
    await guest.script(f"dd if={path} bs=1M count=8 iflag=direct status=none | cmp - /dev/shm/data")


@pytest.mark.slow
async def test_reads_of_a_backing_image_are_delayed_like_reads_of_the_overlay(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, tmp_path: Path
) -> None:
    image = tmp_path / "an image, of mine.img"
    image.write_bytes(b"mine" * 1024 * 1024)
    model = GuestModel.model_validate(
        {
            "disks": {
                kind: {"type": kind, "size": "8M", "image": str(image), "latency": {"both": "50ms"}}
                for kind in ("virtio-blk", "nvme")
            }
        }
    )
    async with factory.guest("g0", model, kernel, logs) as guest:
        for name in model.disks:
            path = guest.disks[name].path
            assert await reads(guest, name, 20) >= 1.0
            await guest.run("dd", "if=/dev/zero", f"of={path}", "bs=64k", "count=1", "oflag=direct")
            assert await reads(guest, name, 20) >= 1.0
            await guest.hardware.hang(name, 2)
            started = time.monotonic()
            assert await dd(guest, f"if={path}", "of=/dev/null", "skip=512", "count=1", "iflag=direct") == 0
            assert time.monotonic() - started >= 1.0
            await guest.hardware.delay(name, NO_DELAY)
            assert not {
                node for node in await nodes(guest) if node.startswith(f"late-{name}") or node == f"late-image-{name}"
            }
            await guest.script(
                "yes mine | tr -d '\\n' | head -c 1M >/dev/shm/mine; "
                f"head -c 4M {path} | tail -c 1M | cmp - /dev/shm/mine"
            )
            await guest.hardware.unplug(name)
            await guest.hardware.plug(name)
            assert await reads(guest, name, 20) >= 1.0


@pytest.mark.slow
async def test_a_disk_that_hangs_recovers(guest: Guest) -> None:
    for name in ("virtio", "nvme"):
        await guest.hardware.hang(name, 600)
        reading = asyncio.create_task(reads(guest, name, 1))
        done, _ = await asyncio.wait({reading}, timeout=1)
        assert not done
        await guest.hardware.hang(name, 0)
        assert await reading >= 1.0


@pytest.mark.slow
async def test_an_invalid_command_changes_nothing(guest: Guest) -> None:
    before = {name: await guest.hardware.condition(name) for name in guest.hardware.names()}
    there = await nodes(guest)
    for disk, what, words, said in (
        ("dsk", "throttle", ["iops-total=1"], r"expected one of the guest's disks \(virtio, .*\), got 'dsk'"),
        ("root", "throttle", ["iops-total=1"], "got 'root'"),
        ("both", "inject", ["read=EIO"], "expected a disk, got 'both', which is a throttle group"),
        ("virtio", "throttle", ["iops-total=1", "iops-read=1"], "got both"),
        ("virtio", "throttle", ["iops-total=-1"], "expected a number such as 100"),
        ("virtio", "delay", ["fast"], "expected a duration"),
        ("virtio", "inject", ["read=lost"], "expected an error for a read"),
        ("virtio", "hang", ["2h"], "expected a duration"),
        ("root", "unplug", [], "got 'root'"),
        ("virtio", "plug", [], "it is plugged in already"),
        ("virtio", "resize", ["1000"], "expected a multiple of 4096 bytes, got 1000"),
        (
            "virtio",
            "inject",
            ["read=EIO,range=1T-2T"],
            "expected a range that begins within its 64M, got read=EIO,range=1099511627776-",
        ),
        ("copied", "inject", ["write=torn"], "it is kept in qcow2"),
        ("nvme", "resize", ["128M"], "QEMU's nvme keeps its size"),
        (
            "virtio",
            "explode",
            ["now"],
            "expected one of throttle, delay, inject, hang, unplug, plug, resize, memory, cpus, got 'explode'",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            await hardware_control.apply(guest, (what, disk, *words))
    assert {name: await guest.hardware.condition(name) for name in guest.hardware.names()} == before
    assert await nodes(guest) == there


@pytest.mark.slow
async def test_a_shared_group_limits_all_its_disks(guest: Guest) -> None:
    found = await hardware_control.apply(guest, ("throttle", "shared", "iops-total=40"))
    assert found["throttle"] == ["iops-total=40"]
    assert await reads(guest, "shared", 50) >= 1.0


@pytest.mark.slow
async def test_a_disk_that_is_unplugged_and_plugged_again_keeps_its_contents(guest: Guest) -> None:
    for name in ("virtio", "nvme", "scsi"):
        by_serial = (
            f"grep -l tb-{name} /sys/block/*/serial /sys/block/*/device/serial /sys/block/*/device/vpd_pg80 "
            "2>/dev/null | cut -d/ -f4"
        )
        path = guest.disks[name].path
        await guest.script(f"echo kept | dd of={path} conv=sync oflag=direct status=none")
        await guest.hardware.inject(name, (Fault(operation="read", effect="EIO"),))
        await guest.hardware.delay(name, Latency(read_us=1000))
        await guest.hardware.unplug(name)
        assert (await guest.script(by_serial)).stdout == ""
        with pytest.raises(UsageError, match="it is unplugged"):
            await guest.hardware.throttle(name, Throttle())
        assert name not in guest.hardware.names()
        await guest.hardware.plug(name)
        device = (
            await guest.script(
                f'for n in $(seq 100); do found=$({by_serial}); [ -n "$found" ] && break; sleep 0.1; done; echo $found'
            )
        ).stdout
        assert (await guest.script(f"head -c 4 /dev/{device.strip()}")).stdout == "kept"


@pytest.mark.slow
async def test_a_disk_grows_while_the_guest_runs(guest: Guest) -> None:
    for name in ("virtio", "scsi"):
        path = guest.disks[name].path
        await guest.hardware.resize(name, 128 << 20)
        # The kernel's SCSI disk asks for its size only when it is told to.
        if name == "scsi":
            await guest.script("echo 1 >/sys/block/${1#/dev/}/device/rescan", path)
        seen = (
            f"for n in $(seq 100); do size=$(blockdev --getsize64 {path}); "
            "[ $size = 134217728 ] && break; sleep 0.1; done; echo $size"
        )
        assert (await guest.script(seen)).stdout == "134217728\n", name
