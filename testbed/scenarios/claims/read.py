"""Reads through a buffered loop on a disk: the reader is charged the disk's bytes and the backing file's page cache.

The loop is read with O_DIRECT, so that it has no page cache of its own; the root cgroup has written the backing file.
"""

from __future__ import annotations

from testbed.guest.guest import Guest
from testbed.scenarios.controls import UsualControls, owned_pages, usual_controls
from testbed.scenarios.harness import Charge, Harness, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Claim, Evidence, Measure, join_parts, pages_of, share_of
from testbed.units import MIB

READ_BYTES = 16 * MIB
_FILESYSTEMS = ("ext4", "xfs", "btrfs")


def judge(*, charged: int, moved: int, owned: int, resident: int) -> Claim:
    """Judge the bytes of the disk and the page cache of one measurement.

    `charged`: the disk's bytes that the reader is charged for; `moved`: the bytes that the disk delivered; `owned`: the
    page cache charged to the reader; `resident`: the pages of the backing file in memory. All in bytes. Readahead adds
    to all of them (0.75 % on ext4 and xfs; 50 % on btrfs, which reads ahead in steps of its own).
    """
    # If the disk delivered less, the data came from somewhere else.
    disk = share_of("the disk's bytes", charged, moved, least=READ_BYTES * 0.95)
    return join_parts(disk, pages_of("the page cache", owned, resident, READ_BYTES))


def read_command(target: str) -> str:
    """Return a command that reads `READ_BYTES` from a file or device, bypassing its page cache."""
    return f"dd if={target} of=/dev/null bs=1M count={READ_BYTES // MIB} iflag=direct status=none"


async def _steps(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        charge = await harness.meter("reader", read_command(harness.loop))
        resident = await harness.resident_bytes()
        usual = await usual_controls(harness, read_command, "rbytes", READ_BYTES)
        return _evidence(harness, charge, resident, usual)


def _evidence(harness: Harness, charge: Charge, resident: int, usual: UsualControls) -> Evidence:
    charged, moved, page_cache = (
        charge.io(harness.device, "rbytes"),
        harness.disk_moved(charge, "rbytes"),
        charge.memory("file"),
    )
    judged = judge(charged=charged, moved=moved, owned=page_cache, resident=resident)
    return Evidence(
        claim=judged.gap,
        reason=f"the reader has {harness.share(charge, 'rbytes'):.1%} of the disk's bytes "
        f"and {page_cache / MIB:.1f} MiB of page cache{judged.note}",
        measures=(
            Measure(name="charged reads", value=charged, unit="bytes", source=f"io.stat rbytes of {charge.cgroup}"),
            Measure(
                name="disk reads", value=moved, unit="bytes", source=f"query-blockstats rd_bytes of {harness.disk}"
            ),
            Measure(
                name="charged page cache", value=page_cache, unit="bytes", source=f"memory.stat file of {charge.cgroup}"
            ),
            Measure(name="resident pages", value=resident, unit="bytes", source="fincore of the backing file"),
        ),
        controls=usual.controls,
        balances=(
            harness.balance(charge, "rbytes"),
            *usual.balances,
            *owned_pages(judged.gap, "reader", page_cache, resident),
        ),
    )


READ = Scenario(
    name="read",
    claim="Reads through a buffered loop device on a disk are charged to the reader: disk bytes and page cache",
    patches=(4,),
    predicted_base="none of the disk's bytes and no page cache are the reader's",
    predicted_patched="the disk's bytes and the backing file's page cache are the reader's (and some more, by "
    "readahead)",
    source="loop: charge i/o to mem and blk cg (patch 4)",
    needs=COMMON_NEEDS,
    points=on_each_disk(*_FILESYSTEMS),
    what="16M read with O_DIRECT from a loop on a file that the root cgroup wrote",
    steps=_steps,
    found="7.2 reads megabytes ahead on virtio-blk, so that every disk's read_ahead_kb is set to the 128 of the other "
    "kernels; btrfs reads ahead in steps of its own, so that pages are judged against those in memory and not against "
    "what was asked for",
)
