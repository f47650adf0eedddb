"""Writes through a buffered loop on a disk: the writer is charged for the writeback, too.

The dirty pages of the backing file are charged to the writer's cgroup, and writeback to the owner of the inode: the
cgroup that dirtied it first. On ext4 this is the root, whose worker touched the inode before; the owner changes after
about 128M (wb_inode switching). So the first rounds on ext4 are charged to the root on every kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.guest.guest import Guest
from testbed.scenarios.controls import UsualControls, owned_pages, usual_controls
from testbed.scenarios.harness import Charge, Harness, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Evidence, Measure, join_parts, share_of
from testbed.units import MIB

# The inodes of the controls do not change their owner.
_CONTROL_BYTES = 16 * MIB


def write_command(target: str, size_bytes: int) -> str:
    """Return a command that writes to a file or device, bypassing its page cache, until all is on the disk."""
    count = size_bytes // MIB
    return f"dd if=/dev/zero of={target} bs=1M count={count} oflag=direct conv=notrunc,fsync status=none && sync"


async def write_controls(harness: Harness, size_bytes: int) -> UsualControls:
    """Run the usual controls with a write.

    The direct control makes a new file, so that it owns the inode even if O_DIRECT falls back to the page cache (btrfs
    with checksums, since 6.12 at least).
    """
    return await usual_controls(
        harness, lambda target: write_command(target, size_bytes), "wbytes", size_bytes, file=f"{harness.file}-own"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Rounds of writes to a loop, of which only the last `judged` are judged."""

    round_bytes: int
    count: int
    judged: int

    async def write(self, guest: Guest, point: Point) -> Evidence:
        """Write all rounds, and judge whether the writer is charged when they reach the disk."""
        async with open_harness(guest, point) as harness:
            # The root has written the file, and owns its inode.
            await harness.reattach_uncached()
            charges = [
                await harness.meter("writer", write_command(harness.loop, self.round_bytes)) for _ in range(self.count)
            ]
            resident = await harness.resident_bytes()
            usual = await write_controls(harness, _CONTROL_BYTES)
            return self._evidence(harness, charges, resident, usual)

    def _evidence(self, harness: Harness, charges: list[Charge], resident: int, usual: UsualControls) -> Evidence:
        last = charges[-self.judged :]
        charged = sum(charge.io(harness.device, "wbytes") for charge in last)
        moved = sum(harness.disk_moved(charge, "wbytes") for charge in last)
        share = charged / moved if moved else 0.0
        each = ", ".join(f"{harness.share(charge, 'wbytes'):.0%}" for charge in charges)
        claim = join_parts(share_of("the disk's bytes", charged, moved, least=self.judged * self.round_bytes * 0.95))
        return Evidence(
            claim=claim.gap,
            reason=f"the writer has {share:.1%} of the disk's bytes in the last {self.judged} rounds "
            f"(each: {each}){claim.note}",
            measures=(
                Measure(name="charged writes", value=charged, unit="bytes", source="io.stat wbytes of writer"),
                Measure(
                    name="disk writes", value=moved, unit="bytes", source=f"query-blockstats wr_bytes of {harness.disk}"
                ),
            ),
            controls=usual.controls,
            balances=(
                *(harness.balance(charge, "wbytes") for charge in charges),
                *usual.balances,
                *owned_pages(claim.gap, "writer", charges[-1].memory("file"), resident),
            ),
        )


def write_on(filesystem: str, rounds: Rounds, *, predicted_patched: str) -> Scenario:
    """Make the scenario of writes to a loop on a filesystem."""
    return Scenario(
        name=f"write-{filesystem}",
        claim=f"Writes through a buffered loop device on {filesystem} are charged to the writer when they reach the "
        "disk",
        patches=(4,),
        predicted_base="none of the disk's bytes are the writer's",
        predicted_patched=predicted_patched,
        source="loop: charge i/o to mem and blk cg (patch 4); writeback follows the inode's owner (fs/fs-writeback.c)",
        what=f"{rounds.count} rounds of {rounds.round_bytes // MIB}M with O_DIRECT to the loop, fsync and sync after "
        "each; "
        f"the last {rounds.judged} are judged",
        needs=COMMON_NEEDS,
        points=on_each_disk(filesystem, size_bytes=rounds.round_bytes),
        steps=rounds.write,
        found="the root wrote the file, and owns its inode's writeback until the inode leaves the cache: it is dropped "
        "first. On btrfs 6.12 and 7.2 O_DIRECT on a file with checksums goes through the page cache, so that the "
        "direct "
        "control writes a file of its own",
    )


WRITE_XFS = write_on(
    "xfs",
    Rounds(round_bytes=32 * MIB, count=2, judged=2),
    predicted_patched="all of the disk's bytes are the writer's, in each round",
)
WRITE_BTRFS = write_on(
    "btrfs",
    Rounds(round_bytes=32 * MIB, count=2, judged=1),
    predicted_patched="all of the disk's bytes but metadata are the writer's",
)
WRITE_EXT4 = write_on(
    "ext4",
    Rounds(round_bytes=64 * MIB, count=3, judged=1),
    predicted_patched="none in the first two rounds, then all of the disk's bytes are the writer's",
)
