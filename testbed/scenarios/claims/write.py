"""Writes through a buffered loop device on a disk: what the flusher writes back later belongs to the writer, too.

The dirty pages of the backing file are charged to the writer's cgroup, and writeback follows the owner of the inode: whoever dirtied it
first. On ext4 that is the root, whose worker touched it before, and the inode changes hands after about 128M (wb_inode switching): the
first rounds there are the root's on every kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.guest.guest import Guest
from testbed.scenarios.controls import UsualControls, owned_pages, usual_controls
from testbed.scenarios.harness import Charge, Harness, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Evidence, Measure, join_parts, share_of
from testbed.units import MIB

# The controls have no inode that changes hands.
_CONTROL_BYTES = 16 * MIB


def write_command(target: str, size_bytes: int) -> str:
    """Writes past the target's own page cache, and ends when all is on the disk."""
    return f"dd if=/dev/zero of={target} bs=1M count={size_bytes // MIB} oflag=direct conv=notrunc,fsync status=none && sync"


async def write_controls(at: Harness, size_bytes: int) -> UsualControls:
    """The usual controls of a write; the direct one makes a new file, whose inode is its own even where O_DIRECT falls back to the page
    cache (btrfs with checksums, since 6.12 at least)."""
    return await usual_controls(
        at, lambda target: write_command(target, size_bytes), "wbytes", size_bytes, file=f"{at.file}-own"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Rounds of writes to a loop; only the last `judged` rounds count."""

    round_bytes: int
    count: int
    judged: int

    async def write(self, guest: Guest, point: Point) -> Evidence:
        """Write all rounds, and judge who is charged for them when they reach the disk."""
        async with open_harness(guest, point) as at:
            # The root wrote the file.
            await at.forget()
            readings = [await at.meter("writer", write_command(at.loop, self.round_bytes)) for _ in range(self.count)]
            resident = await at.resident()
            known = await write_controls(at, _CONTROL_BYTES)
            return self._evidence(at, readings, resident, known)

    def _evidence(self, at: Harness, readings: list[Charge], resident: int, known: UsualControls) -> Evidence:
        last = readings[-self.judged :]
        charged = sum(reading.io(at.device, "wbytes") for reading in last)
        moved = sum(at.moved(reading, "wbytes") for reading in last)
        share = charged / moved if moved else 0.0
        each = ", ".join(f"{at.share(reading, 'wbytes'):.0%}" for reading in readings)
        claim = join_parts(share_of("the disk's bytes", charged, moved, least=self.judged * self.round_bytes * 0.95))
        return Evidence(
            claim=claim.gap,
            reason=f"the writer has {share:.1%} of the disk's bytes in the last {self.judged} rounds "
            f"(each: {each}){claim.note}",
            measures=(
                Measure(name="charged writes", value=charged, unit="bytes", source="io.stat wbytes of writer"),
                Measure(
                    name="disk writes", value=moved, unit="bytes", source=f"query-blockstats wr_bytes of {at.disk}"
                ),
            ),
            controls=known.controls,
            balances=(
                *(at.balance(reading, "wbytes") for reading in readings),
                *known.balances,
                *owned_pages(claim.gap, "writer", readings[-1].memory("file"), resident),
            ),
        )


def write_on(filesystem: str, rounds: Rounds, *, predicted_patched: str) -> Scenario:
    """Make the scenario of writes to a loop on one filesystem."""
    return Scenario(
        name=f"write-{filesystem}",
        claim=f"Writes through a buffered loop device on {filesystem} are charged to the writer when they reach the disk",
        patches=(4,),
        predicted_base="none of the disk's bytes are the writer's",
        predicted_patched=predicted_patched,
        source="loop: charge i/o to mem and blk cg (patch 4); writeback follows the inode's owner (fs/fs-writeback.c)",
        what=f"{rounds.count} rounds of {rounds.round_bytes // MIB}M with O_DIRECT to the loop, fsync and sync after each; the last {rounds.judged} are judged",
        needs=COMMON_NEEDS,
        points=on_each_disk(filesystem, size_bytes=rounds.round_bytes),
        steps=rounds.write,
        found="the root wrote the file, and owns its inode's writeback until the inode leaves the cache: it is dropped first. On btrfs "
        "6.12 and 7.2 O_DIRECT on a file with checksums goes through the page cache, so that the direct control writes a file of its own",
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
