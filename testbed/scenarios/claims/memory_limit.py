"""A small memory.max on a disk filesystem: the page cache of the backing file counts, so the writer is held back; it is not killed, for
clean pages can go, as long as there is room for those that cannot go yet."""

from __future__ import annotations

from testbed.guest.channels.kernel_log import Kind
from testbed.guest.guest import Guest
from testbed.scenarios.claims.write import write_command, write_controls
from testbed.scenarios.controls import owned_pages
from testbed.scenarios.harness import open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure, Part, join_parts
from testbed.units import MIB

_WRITTEN_BYTES, _CONTROL_BYTES = 64 * MIB, 4 * MIB
# From here on there is room for all pages that the loop's worker may hold at a time.
_ROOM_BYTES = 16 * MIB
# Of 64M at most 58M were reclaimed (docs/results/four-kernels.md): each page is written once, and some stay.
_MOST_RECLAIMED = 1.05


def judge(*, reclaimed: int, written: int, limit: int, kills: int) -> Gap:
    """Judge the bytes that were taken back from the writer, over what it wrote beyond its limit: all, none, or more than it wrote at all.

    A kill below `_ROOM_BYTES` shows as well whose the pages are: the program alone has room enough, which is a control.
    """
    if kills:
        return Gap.CLOSED if limit < _ROOM_BYTES else Gap.UNCLEAR
    beyond = written - limit
    if beyond < _WRITTEN_BYTES // 4 or reclaimed < 0:
        return Gap.UNCLEAR
    if reclaimed > written * _MOST_RECLAIMED:
        return Gap.EXCESS
    if reclaimed >= beyond * 0.8:
        return Gap.CLOSED
    return Gap.OPEN if reclaimed <= beyond * 0.02 else Gap.UNCLEAR


_LIMITED = """\
for name in writer alone; do
    mkdir /sys/fs/cgroup/$name && echo 0 >/sys/fs/cgroup/$name/memory.swap.max && echo "$1" >/sys/fs/cgroup/$name/memory.max || exit 1
done
"""


async def _steps(guest: Guest, point: Point) -> Evidence:
    limit = int(point.variant.removesuffix("M")) * MIB
    async with open_harness(guest, point) as at:
        await guest.script(_LIMITED, point.variant)
        claim = await at.meter("writer", write_command(at.loop, _WRITTEN_BYTES), check=False)
        resident = await at.resident()
        alone = await at.meter("alone", write_command(f"{at.file}-alone", _CONTROL_BYTES), check=False)
        known = await write_controls(at, _CONTROL_BYTES)
    written, kills = at.moved(claim, "wbytes"), claim.events("oom_kill")
    reclaimed = claim.memory("pgsteal") * 4096
    judged = join_parts(
        Part(what="reclaimed", gap=judge(reclaimed=reclaimed, written=written, limit=limit, kills=kills))
    )
    pages = () if kills else owned_pages(judged.gap, "writer", claim.memory("file"), resident)
    return Evidence(
        claim=judged.gap,
        reason=f"of {written / MIB:.0f}M written under a limit of {limit / MIB:.0f}M {reclaimed / MIB:.0f}M were taken back from the "
        f"writer, {claim.events('max')} times at memory.max, {kills} kills{judged.note}",
        measures=(
            Measure(name="reclaimed", value=reclaimed, unit="bytes", source="memory.stat pgsteal of writer"),
            Measure(
                name="reached memory.max", value=claim.events("max"), unit="times", source="memory.events max of writer"
            ),
            Measure(name="killed", value=kills, unit="kills", source="memory.events oom_kill of writer"),
        ),
        controls=(
            Control(
                name="written in full, or killed",
                expected=f"{_WRITTEN_BYTES} bytes on the disk, or a kill",
                got=f"{written} bytes, {kills} kills, status {claim.status}",
                holds=kills > 0 or (claim.status == 0 and written >= _WRITTEN_BYTES * 0.95),
            ),
            Control(
                name="the program alone has room",
                expected="status 0 under the same limit, writing to a file",
                got=f"status {alone.status}, {alone.events('oom_kill')} kills",
                holds=alone.status == 0 and alone.events("oom_kill") == 0,
            ),
            *known.controls,
        ),
        balances=(at.balance(claim, "wbytes"), *known.balances, *pages),
    )


SMALL_MEMORY = Scenario(
    name="small-memory",
    claim="A writer through a loop on a disk filesystem is held to a small memory.max",
    patches=(4,),
    predicted_base="nothing is reclaimed from it: the page cache is the root's",
    predicted_patched="what it writes beyond the limit is reclaimed from it as it goes; at 8M it may be killed instead",
    source='cover letter: "a loop device allows a cgroup to bypass its memory limit"; reclaim of clean page cache',
    what="In a cgroup with memory.max of 16M or 8M: 64M written with O_DIRECT to the loop, and synced",
    needs=COMMON_NEEDS,
    points=on_each_disk("ext4", "xfs", variants=("16M", "8M"), size_bytes=_WRITTEN_BYTES),
    steps=_steps,
    expected_log=frozenset({Kind.OOM}),
    found="at 8M three of 40 writers were OOM-killed (6.1, 6.12, 7.2): the loop's worker allocates with GFP_NOIO and cannot wait for "
    "writeback; at 16M none",
)
