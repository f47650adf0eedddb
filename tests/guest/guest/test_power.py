"""Guests that lose power and boot again from their disks: what fsync acknowledged is there, unless the disk lies."""

import asyncio
from pathlib import Path

import pytest

from benchmarks import durability
from testbed.errors import TestbedError
from testbed.guest.factory import GuestFactory
from testbed.guest.setup import apply
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel

_RECORDS = 15


def model(disk: str, filesystem: str, cache: str) -> GuestModel:
    return GuestModel.model_validate(
        {
            "disks": {"data": {"type": disk, "size": "512M", "cache": cache}},
            "filesystems": {"data": {"type": filesystem}},
        }
    )


async def cut(
    factory: GuestFactory, kernel: KernelFiles, wanted: GuestModel, logs: Path, *, share: float
) -> tuple[int, int | None]:
    """Cut the power once under load; return the counts of acknowledged and lost records (None: no filesystem)."""
    kept = factory.new_folder()
    async with factory.guest("g0", wanted, kernel, logs / "before") as guest:
        await apply.apply_steps(guest)
        async with durability.loading(guest, "data") as load:
            await guest.wait(load.reaches(_RECORDS), 120)
            blocks = await guest.cut_power(kept, share=share, seed=7)
        assert blocks["data"] > 0 or wanted.disks["data"].cache == "volatile"
    async with factory.guest("g0", wanted, kernel, logs / "after", surviving_disks=kept) as again:
        try:
            await apply.apply_steps(again)
        except TestbedError:
            return load.acknowledged, None
        return load.acknowledged, len(await durability.missing(again, "data", load))


@pytest.mark.slow
@pytest.mark.parametrize(("disk", "filesystem"), [("virtio-blk", "ext4"), ("nvme", "xfs"), ("virtio-blk", "btrfs")])
async def test_what_fsync_acknowledged_outlives_a_power_cut(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, disk: str, filesystem: str
) -> None:
    acknowledged, gone = await cut(factory, kernel, model(disk, filesystem, "volatile"), logs, share=0.5)
    assert acknowledged >= _RECORDS and gone == 0


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["virtio-blk", "nvme"])
async def test_a_disk_that_lies_about_flushes_loses_what_fsync_acknowledged(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, disk: str
) -> None:
    acknowledged, gone = await cut(factory, kernel, model(disk, "ext4", "lies"), logs, share=0.0)
    assert acknowledged >= _RECORDS and (gone is None or gone > 0)


@pytest.mark.slow
async def test_a_disk_without_a_cache_keeps_acknowledged_writes(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    wanted = GuestModel.model_validate({"disks": {"data": {"type": "nvme", "size": "64M"}}})
    kept = factory.new_folder()
    async with factory.guest("g0", wanted, kernel, logs / "before") as guest:
        await guest.script("echo here | dd of=$1 conv=sync oflag=direct status=none", guest.disks["data"].path)
        assert await guest.cut_power(kept, share=0.0, seed=1) == {}
        assert await asyncio.wait_for(guest.lost(), 10) == "its power was cut"
    async with factory.guest("g0", wanted, kernel, logs / "after", surviving_disks=kept) as again:
        assert (await again.script("head -c 4 $1", again.disks["data"].path)).stdout == "here"
