"""A small memory.max on a disk filesystem: the page cache of the backing file counts, so the writer is held back; it is not killed, for
clean pages can go."""

from __future__ import annotations

from testbed.guest import Guest
from testbed.scenarios.base import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.controls import owned_pages
from testbed.scenarios.rig import rig
from testbed.scenarios.write import write_command, write_controls
from testbed.units import MIB
from testbed.verdict import Control, Evidence, Gap, Measure

_WRITTEN_BYTES, _CONTROL_BYTES = 64 * MIB, 4 * MIB


def judge(*, reclaimed: int, written: int, limit: int) -> Gap:
    """Bytes that were taken back from the writer, over what it wrote beyond its limit: all, or none."""
    beyond = written - limit
    if beyond < _WRITTEN_BYTES // 4:
        return Gap.UNCLEAR
    if reclaimed >= beyond * 0.8:
        return Gap.CLOSED
    return Gap.OPEN if reclaimed <= beyond * 0.02 else Gap.UNCLEAR


async def _steps(guest: Guest, point: Point) -> Evidence:
    limit = int(point.variant.removesuffix("M")) * MIB
    async with rig(guest, point) as at:
        await guest.script(
            'cd /sys/fs/cgroup && mkdir writer && echo 0 >writer/memory.swap.max && echo "$1" >writer/memory.max', point.variant
        )
        claim = await at.meter("writer", write_command(at.loop, _WRITTEN_BYTES), check=False)
        resident = await at.resident()
        known = await write_controls(at, _CONTROL_BYTES)
    written, kills = at.moved(claim, "wbytes"), claim.events("oom_kill")
    reclaimed = claim.memory("pgsteal") * 4096
    gap = judge(reclaimed=reclaimed, written=written, limit=limit)
    return Evidence(
        claim=gap,
        reason=f"of {written / MIB:.0f}M written under a limit of {limit / MIB:.0f}M {reclaimed / MIB:.0f}M were taken back from the "
        f"writer, {claim.events('max')} times at memory.max, {kills} kills",
        measures=(
            Measure(name="reclaimed", value=reclaimed, unit="bytes", source="memory.stat pgsteal of writer"),
            Measure(name="reached memory.max", value=claim.events("max"), unit="times", source="memory.events max of writer"),
            Measure(name="killed", value=kills, unit="kills", source="memory.events oom_kill of writer"),
        ),
        controls=(
            Control(
                name="written in full, or killed",
                expected=f"{_WRITTEN_BYTES} bytes on the disk, or a kill",
                got=f"{written} bytes, {kills} kills, status {claim.status}",
                holds=kills > 0 or (claim.status == 0 and written >= _WRITTEN_BYTES * 0.95),
            ),
            *known.controls,
        ),
        balances=(at.balance(claim, "wbytes"), *known.balances, *owned_pages(gap, "writer", claim.memory("file"), resident)),
    )


SMALL_MEMORY = Scenario(
    name="small-memory",
    claim="A writer through a loop on a disk filesystem is held to a small memory.max",
    patches=(4,),
    predicted_base="nothing is reclaimed from it: the page cache is the root's",
    predicted_patched="what it writes beyond the limit is reclaimed from it as it goes",
    source='cover letter: "a loop device allows a cgroup to bypass its memory limit"; reclaim of clean page cache',
    what="In a cgroup with memory.max of 16M or 8M: 64M written with O_DIRECT to the loop, and synced",
    needs=COMMON_NEEDS,
    points=on_each_disk("ext4", "xfs", variants=("16M", "8M"), size_bytes=_WRITTEN_BYTES),
    steps=_steps,
    found="at 8M two of 24 writers were OOM-killed (6.1, 7.2): the loop's worker allocates with GFP_NOIO and cannot wait for writeback; "
    "at 16M none",
)
