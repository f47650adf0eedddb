"""Swap-in of a loop's backing file on tmpfs: pages are charged to their old owner, whoever reads them (patch 3)."""

from __future__ import annotations

from testbed.guest import shell_functions
from testbed.guest.guest import Guest
from testbed.guest.setup import apply, survey
from testbed.guest.shell_functions import ENTER
from testbed.scenarios.harness import loops_at
from testbed.scenarios.scenario import COMMON_NEEDS, Need, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Claim, Control, Evidence, Gap, Measure, Part, join_parts, share_gap, share_of
from testbed.units import MIB, parse_whole

_WRITTEN = 96 * MIB

# $1: loop. $2: its file. $3: disk for swap. $4: `alive`, or `removed` if the owner is removed before its pages are
# read. Prints `stage NAME SHMEM SWAP` of a cgroup at each stage, in bytes.
_STEPS = f"""\
{ENTER}
mkswap "$3" >/dev/null && swapon "$3" || exit 1
cd /sys/fs/cgroup && mkdir writer reader direct || exit 1
show() {{
    echo "stage $1 $(sed -n "s/^shmem //p" "$2/memory.stat") $(cat "$2/memory.swap.current")"
}}
inside() {{
    enter "$1" || exit 1
    shift
    exec dd "$@" bs=1M status=none
}}
(inside writer if=/dev/zero "of=$1" count=96 oflag=direct) || exit 1
show written writer
echo 16M >writer/memory.max
SURVEY
sleep 0.5
show squeezed writer
echo max >writer/memory.max
[ "$4" = alive ] || rmdir writer || exit 1
(inside reader "if=$1" of=/dev/null count=96 iflag=direct) || exit 1
[ "$4" = alive ] && show back writer
show reader reader
(inside direct if=/dev/zero "of=${{2%/*}}/direct" count=32) || exit 1
show direct direct
rm "${{2%/*}}/direct"
swapoff "$3"
""".replace("SURVEY", survey.TAKE)


def parse_stages(output: str, variant: str, where: str) -> dict[str, tuple[int, int]]:
    """Parse the output into (shmem, swap) in bytes, by stage.

    :raise ReadingError: a stage is missing.
    """
    names = ("written", "squeezed", *(["back"] if variant == "alive" else []), "reader", "direct")
    found = shell_functions.named_values(output, "stage", names, where, values=2)
    return {
        name: (parse_whole(shmem, f"{where}, {name}"), parse_whole(swap, f"{where}, {name}"))
        for name, (shmem, swap) in found.items()
    }


def judge(stages: dict[str, tuple[int, int]]) -> Claim:
    """Judge to whom the pages are charged when they are read back.

    CLOSED: to the writer, or to the reader if the writer was removed. OPEN: they were never charged to anybody.
    PARTIAL: they were charged to the writer first, but not to the right cgroup when they were read back.
    """
    written, (left, swapped), reader = stages["written"][0], stages["squeezed"], stages["reader"][0]
    first = share_of("the pages when written", written, _WRITTEN, least=1)
    others = share_gap(reader, _WRITTEN, least=1)
    if first.gap is Gap.OPEN:
        return join_parts(first, Part(what="the pages read back", gap=Gap.OPEN if others is Gap.OPEN else Gap.UNCLEAR))
    if first.gap is Gap.CLOSED and not _WRITTEN * 0.7 <= swapped <= _WRITTEN * 1.05 - left:
        # Only swapped pages can come back, and a page in memory cannot be in swap as well.
        return join_parts(first, Part(what="what went to swap", gap=Gap.UNCLEAR))
    if first.gap is not Gap.CLOSED:
        return join_parts(first)
    if "back" not in stages:
        return join_parts(
            first, Part(what="the pages read back", gap=_of_reader(reader, swapped), times=reader / _WRITTEN)
        )
    # Pages that the writer kept in memory did not come back.
    back = share_of("the pages read back", max(stages["back"][0] - left, 0), _WRITTEN - left, least=1)
    nobody_else = {Gap.OPEN: Gap.CLOSED, Gap.CLOSED: Gap.OPEN}.get(others, Gap.UNCLEAR)
    return join_parts(first, back, Part(what="nobody else's", gap=nobody_else))


def _of_reader(reader: int, swapped: int) -> Gap:
    """Judge whether the reader is charged for the removed owner's swapped pages; some were still in memory."""
    if reader > _WRITTEN * 1.05:
        return Gap.EXCESS
    if reader >= swapped * 0.8:
        return Gap.CLOSED
    return Gap.OPEN if reader <= swapped * 0.02 else Gap.UNCLEAR


async def _steps(guest: Guest, point: Point) -> Evidence:
    disk = point.disk_in(guest.model)
    assert disk is not None  # `Point.lacks` has checked it
    async with apply.stack_applied(guest, loops_at(Point(size_bytes=128 * MIB), "")) as made:
        loop = made.loops["loop0"]
        done = await guest.script(_STEPS, loop.path, loop.backing_file, guest.disks[disk].path, point.variant)
    stages = parse_stages(done.stdout, point.variant, f"guest {guest.name}: memory.stat and memory.swap.current")
    owner = "back" if "back" in stages else "reader"
    claim, direct = judge(stages), share_gap(stages["direct"][0], 32 * MIB, least=1)
    return Evidence(
        claim=claim.gap,
        reason=f"of 96M the writer had {stages['written'][0] / MIB:.0f}M, {stages['squeezed'][1] / MIB:.0f}M went to "
        "swap; "
        f"read back, {stages[owner][0] / MIB:.0f}M are "
        f"{'the writer' if owner == 'back' else 'the reader'}'s{claim.note}",
        measures=tuple(
            Measure(name=name, value=stages[stage][index], unit="bytes", source=source)
            for name, stage, index, source in (
                ("written", "written", 0, "memory.stat shmem of writer"),
                ("swapped", "squeezed", 1, "memory.swap.current of writer"),
                ("read back", owner, 0, f"memory.stat shmem of {'writer' if owner == 'back' else 'reader'}"),
            )
        ),
        controls=(
            Control(
                name="tmpfs itself",
                expected="32M of shmem in the cgroup that wrote it",
                got=f"{stages['direct'][0]} bytes",
                holds=direct is Gap.CLOSED,
                excess=direct is Gap.EXCESS,
            ),
        ),
    )


SWAP_IN = Scenario(
    name="swap-in",
    claim="Pages of a loop's file on tmpfs that were swapped out are charged to their owner when another cgroup "
    "reads them back",
    patches=(3,),
    predicted_base="the writer never had them",
    predicted_patched="they are the writer's again; where it is gone, the reader's",
    source="mm: charge active memcg when no mm is set (patch 3): shmem_swapin_page charges like shmem_getpage",
    what="96M written through a loop on tmpfs, memory.max to 16M and back, all read by another cgroup; swap is on "
    "the disk",
    needs=(*COMMON_NEEDS, Need(what="CONFIG_SWAP", test="test -e /proc/swaps")),
    points=on_each_disk("swap", variants=("alive", "removed")),
    steps=_steps,
    found="with the owner removed the reader pays, for 86M of 91M that were swapped out",
)
