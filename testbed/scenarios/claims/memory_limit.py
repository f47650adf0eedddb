"""A small memory.max on a disk filesystem: the page cache of the backing file counts, so that the writer is throttled.

The writer is not killed, because clean pages can be reclaimed, unless the limit is too small for the other pages.
"""

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
# A limit from here on has space for all pages that the loop's worker can hold at a time.
_ENOUGH_BYTES = 16 * MIB
# Of 64M at most 58M were reclaimed (docs/results/four-kernels.md): each page is written once, and some remain.
_MOST_RECLAIMED = 1.05


def judge(*, reclaimed: int, written: int, limit: int, kills: int) -> Gap:
    """Judge the bytes that were reclaimed from the writer, compared with what it wrote beyond its limit.

    With a limit below `_ENOUGH_BYTES`, a kill shows as well that the pages are charged to the writer; a control shows
    that the program alone fits into the limit.
    """
    if kills:
        return Gap.CLOSED if limit < _ENOUGH_BYTES else Gap.UNCLEAR
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
    mkdir /sys/fs/cgroup/$name && echo 0 >/sys/fs/cgroup/$name/memory.swap.max || exit 1
    echo "$1" >/sys/fs/cgroup/$name/memory.max || exit 1
done
"""


async def _steps(guest: Guest, point: Point) -> Evidence:
    limit = int(point.variant.removesuffix("M")) * MIB
    async with open_harness(guest, point) as harness:
        await guest.script(_LIMITED, point.variant)
        charge = await harness.meter("writer", write_command(harness.loop, _WRITTEN_BYTES), check=False)
        resident = await harness.resident_bytes()
        alone = await harness.meter("alone", write_command(f"{harness.file}-alone", _CONTROL_BYTES), check=False)
        usual = await write_controls(harness, _CONTROL_BYTES)
    written, kills = harness.disk_moved(charge, "wbytes"), charge.events("oom_kill")
    reclaimed = charge.memory("pgsteal") * 4096
    judged = join_parts(
        Part(what="reclaimed", gap=judge(reclaimed=reclaimed, written=written, limit=limit, kills=kills))
    )
    pages = () if kills else owned_pages(judged.gap, "writer", charge.memory("file"), resident)
    return Evidence(
        claim=judged.gap,
        reason=f"of {written / MIB:.0f}M written under a limit of {limit / MIB:.0f}M {reclaimed / MIB:.0f}M were "
        "taken back from the "
        f"writer, {charge.events('max')} times at memory.max, {kills} kills{judged.note}",
        measures=(
            Measure(name="reclaimed", value=reclaimed, unit="bytes", source="memory.stat pgsteal of writer"),
            Measure(
                name="reached memory.max",
                value=charge.events("max"),
                unit="times",
                source="memory.events max of writer",
            ),
            Measure(name="killed", value=kills, unit="kills", source="memory.events oom_kill of writer"),
        ),
        controls=(
            Control(
                name="written in full, or killed",
                expected=f"{_WRITTEN_BYTES} bytes on the disk, or a kill",
                got=f"{written} bytes, {kills} kills, status {charge.status}",
                holds=kills > 0 or (charge.status == 0 and written >= _WRITTEN_BYTES * 0.95),
            ),
            Control(
                name="the program alone has room",
                expected="status 0 under the same limit, writing to a file",
                got=f"status {alone.status}, {alone.events('oom_kill')} kills",
                holds=alone.status == 0 and alone.events("oom_kill") == 0,
            ),
            *usual.controls,
        ),
        balances=(harness.balance(charge, "wbytes"), *usual.balances, *pages),
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
    found="at 8M three of 40 writers were OOM-killed (6.1, 6.12, 7.2): the loop's worker allocates with GFP_NOIO and "
    "cannot wait for "
    "writeback; at 16M none",
)
