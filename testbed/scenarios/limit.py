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
# Where the page cache is not the writer's, its own memory stays far below the limit. A few events may come from starting the program.
_FEW = 5


async def _steps(guest: Guest, point: Point) -> Evidence:
    async with rig(guest, point) as at:
        await guest.script(
            'cd /sys/fs/cgroup && mkdir writer && echo 0 >writer/memory.swap.max && echo "$1" >writer/memory.max', point.variant
        )
        claim = await at.meter("writer", write_command(at.loop, _WRITTEN_BYTES), check=False)
        resident = await at.resident()
        known = await write_controls(at, _CONTROL_BYTES)
        hits, kills = claim.events("max"), claim.events("oom_kill")
        gap = Gap.UNCLEAR
        if claim.status == 0 and kills == 0:
            gap = Gap.OPEN if hits <= _FEW else Gap.CLOSED if hits >= 10 * _FEW else Gap.UNCLEAR
        return Evidence(
            claim=gap,
            reason=f"{hits} times at memory.max, {kills} kills, the writer ended with status {claim.status}",
            measures=(
                Measure(name="reached memory.max", value=hits, unit="times", source="memory.events max of writer"),
                Measure(name="killed", value=kills, unit="kills", source="memory.events oom_kill of writer"),
            ),
            controls=(
                Control(
                    name="written in full",
                    expected=f"{_WRITTEN_BYTES} bytes on the disk",
                    got=f"{at.moved(claim, 'wbytes')} bytes",
                    holds=at.moved(claim, "wbytes") >= _WRITTEN_BYTES * 0.95,
                ),
                *known.controls,
            ),
            balances=(at.balance(claim, "wbytes"), *known.balances, *owned_pages(gap, "writer", claim.memory("file"), resident)),
        )


SMALL_MEMORY = Scenario(
    name="small-memory",
    claim="A writer through a loop on a disk filesystem is held at a small memory.max and not killed",
    patches=(4,),
    predicted_base="memory.max is never reached: the page cache is the root's",
    predicted_patched="memory.max is reached often, nobody is killed, and all is written",
    source='cover letter: "a loop device allows a cgroup to bypass its memory limit"; reclaim of clean page cache',
    what="In a cgroup with memory.max of 16M or 8M: 64M written with O_DIRECT to the loop, and synced",
    needs=COMMON_NEEDS,
    points=on_each_disk("ext4", "xfs", variants=("16M", "8M"), size_bytes=_WRITTEN_BYTES),
    steps=_steps,
)
