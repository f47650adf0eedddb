"""Cuts the power repeatedly while the guest writes and syncs, and counts acknowledged records that are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import durability
from benchmarks.durability import Load
from testbed.errors import GuestError
from testbed.guest.factory import GuestFactory, open_factory
from testbed.guest.setup import apply
from testbed.host import tempdirs
from testbed.progress import Task
from testbed.report import live
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel

_DISKS, _FILESYSTEMS = ("virtio-blk", "nvme"), ("ext4", "xfs", "btrfs")
# Records that are synced before the power cut; a few more until it takes effect.
_RECORDS = 20
_LIMIT_S = 180.0

Row = dict[str, Any]


async def measure(*, cuts: int, kernel: str, seed: int) -> list[Row]:
    """Return a row for each disk and filesystem with an honest cache, and for each with a lying one, until it has lost
    something.
    """
    rows = []
    with tempdirs.temporary() as folder, live.progress(Console(stderr=True)) as progress:
        async with open_factory(progress, kernels=(kernel,)) as factory:
            files = await factory.kernel(kernel)
            for cache in ("volatile", "lies"):
                for disk in _DISKS:
                    for filesystem in _FILESYSTEMS:
                        said = {"type": disk, "size": "1G", "cache": cache}
                        model = GuestModel.model_validate(
                            {"disks": {"data": said}, "filesystems": {"data": {"type": filesystem}}}
                        )
                        evidence = folder / f"{cache}-{disk}-{filesystem}"
                        with progress.task(f"{filesystem} on {disk}, {cache}") as task:
                            row = await _row(
                                factory, files, model, evidence, cuts, seed, lying=cache == "lies", task=task
                            )
                        rows.append({"disk": disk, "filesystem": filesystem, "cache": cache, **row})
    return rows


async def _row(
    factory: GuestFactory,
    kernel: KernelFiles,
    model: GuestModel,
    evidence: Path,
    cuts: int,
    seed: int,
    *,
    lying: bool,
    task: Task,
) -> Row:
    kept: Path | None = None
    load, before = Load(), ""
    acknowledged = gone = blocks = 0
    for number in range(cuts + 1):
        async with factory.guest("bench", model, kernel, evidence / str(number), surviving_disks=kept) as guest:
            try:
                await apply.apply_steps(guest)
            except GuestError as error:
                return _result(
                    number, acknowledged, gone, blocks, f"the filesystem is lost: {str(error).splitlines()[-1][:80]}"
                )
            if number:
                gone += len(await durability.missing(guest, before, load))
                acknowledged += load.acknowledged
            if number == cuts or (lying and gone):
                return _result(number, acknowledged, gone, blocks, "")
            kept, before = factory.new_folder(), f"data/cut-{number}"
            async with durability.loading(guest, before) as load:
                await guest.wait(load.reaches(_RECORDS), _LIMIT_S)
                blocks += (await guest.cut_power(kept, share=0.5, seed=seed + number))["data"]
        task.update(fraction=(number + 1) / cuts)
    raise AssertionError("not reached")


def _result(cuts: int, acknowledged: int, gone: int, blocks: int, why: str) -> Row:
    return {"cuts": cuts, "acknowledged": acknowledged, "gone": gone, "unsynced blocks lost": blocks, "": why}
