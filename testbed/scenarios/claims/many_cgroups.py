"""Many cgroups on one loop: each is charged its own bytes (patch 4), because each has its own worker (patch 1)."""

from __future__ import annotations

from testbed import cgroupfs
from testbed.cgroupfs import ROOT
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings
from testbed.guest.setup import survey
from testbed.guest.shell_functions import FileTexts
from testbed.scenarios.controls import owned_pages, usual_read_controls
from testbed.scenarios.harness import FRESH, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import (
    Balance,
    Claim,
    Control,
    Evidence,
    Gap,
    Measure,
    Part,
    join_parts,
    share_gap,
    share_of,
)
from testbed.units import MIB

# Each cgroup reads a piece of another size. The pieces start 2M apart, so that no readahead reaches into the next
# piece.
_PIECE_BYTES, _STEP_BYTES = MIB, 64 << 10

# $1: loop. $2: number of cgroups, which read at the same time. Then the counters of each and of the root are read.
_READERS = """\
{
:
WARM
} >&2
n=0
while [ $n -lt "$2" ]; do mkdir "/sys/fs/cgroup/many-$n" || exit 1; n=$((n + 1)); done
SURVEY
section before
take /sys/fs/cgroup/io.stat
n=0 readers=
while [ $n -lt "$2" ]; do
    (enter "many-$n" || exit 1
     exec dd "if=$1" of=/dev/null bs=64k "skip=$((n * 32))" "count=$((16 + n % 4))" iflag=direct status=none) >&2 &
    readers="$readers $!"
    n=$((n + 1))
done
for reader in $readers; do wait "$reader" || exit 1; done
section after
take /sys/fs/cgroup/io.stat
n=0
while [ $n -lt "$2" ]; do take "/sys/fs/cgroup/many-$n/io.stat" "/sys/fs/cgroup/many-$n/memory.stat"; n=$((n + 1)); done
finish
""".replace("WARM", FRESH).replace("SURVEY", survey.TAKE)


def _asked(number: int) -> int:
    return _PIECE_BYTES + number % 4 * _STEP_BYTES


def judge(charged: list[int], moved: int) -> Claim:
    """Judge whether each cgroup is charged its own bytes, and all together what the disk `moved`; in bytes.

    Bytes that the disk moved beyond those that were requested are readahead, and may be charged to any cgroup.
    """
    asked = [_asked(number) for number in range(len(charged))]
    ahead = moved - sum(asked)
    if moved < sum(asked) * 0.95:
        return Claim(gap=Gap.UNCLEAR, note="; too little came from the disk")
    own = (
        _own(f"cgroup {number}", *pair, max(ahead, 0)) for number, pair in enumerate(zip(charged, asked, strict=True))
    )
    return join_parts(*own, share_of("all cgroups", sum(charged), moved, least=1))


def _own(what: str, charged: int, asked: int, ahead: int) -> Part:
    """Judge one cgroup, which must be charged at least its own bytes, and at most all readahead in addition."""
    return Part(what=what, gap=share_gap(charged, asked, least=asked, ahead=ahead), times=charged / asked)


def counted(after: FileTexts, count: int, device: str) -> tuple[list[int], int]:
    """Return the bytes that each cgroup has read from a device, and the page cache of all. The cgroups are new.

    :raise ReadingError: the counters of a cgroup were not read.
    """
    charged, page_cache = [], 0
    for number in range(count):
        io, memory = (f"{ROOT}/many-{number}/{file}" for file in ("io.stat", "memory.stat"))
        charged.append(cgroupfs.bytes_moved("", after.text(io), device, "rbytes", after.where(io)))
        page_cache += cgroupfs.parse_key(after.text(memory), "file", after.where(memory))
    return charged, page_cache


async def _many(guest: Guest, point: Point) -> Evidence:
    count = int(point.variant)
    async with open_harness(guest, point) as harness:
        before = (await harness.disk_bytes())[0]
        taken = await readings.take_files(guest, _READERS, harness.loop, str(count))
        moved = cgroupfs.growth(before, (await harness.disk_bytes())[0], f"disk {harness.disk}: QEMU's rd_bytes")
        charged, page_cache = counted(taken["after"], count, harness.device)
        root = f"{ROOT}/io.stat"
        whole = cgroupfs.bytes_moved(
            taken["before"].text(root), taken["after"].text(root), harness.device, "rbytes", taken["after"].where(root)
        )
        resident = await harness.resident_bytes()
        usual = await usual_read_controls(harness)
        asked = sum(_asked(number) for number in range(count))
        judged = judge(charged, moved)
        return Evidence(
            claim=judged.gap,
            reason=f"{count} cgroups have {sum(charged) / moved if moved else 0:.1%} of the disk's bytes; "
            f"of its own each has {min(charged[n] / _asked(n) for n in range(count)):.2f} to "
            f"{max(charged[n] / _asked(n) for n in range(count)):.2f}{judged.note}",
            measures=(
                Measure(
                    name="charged reads, all", value=sum(charged), unit="bytes", source="io.stat rbytes of all readers"
                ),
                Measure(
                    name="disk reads", value=moved, unit="bytes", source=f"query-blockstats rd_bytes of {harness.disk}"
                ),
            ),
            controls=(
                Control(
                    name="they read",
                    expected=f"{asked} bytes from the disk",
                    got=f"{moved}",
                    holds=moved >= asked * 0.95,
                ),
                *usual.controls,
            ),
            balances=(
                Balance(what=f"rbytes of disk {harness.disk}", accounted=whole, real=moved),
                *usual.balances,
                *owned_pages(judged.gap, "readers", page_cache, resident),
            ),
        )


MANY = Scenario(
    name="many-cgroups",
    claim="With 1, 2, 8 or 32 cgroups reading through one loop at once, each cgroup's bytes are its own",
    patches=(1, 4),
    predicted_base="no cgroup has any of the disk's bytes",
    predicted_patched="each cgroup has the bytes that it read, and a little readahead",
    source="loop: use worker per cgroup instead of kworker (patch 1)",
    what="So many cgroups read at once, each its own piece of 1M and more of the loop, with O_DIRECT",
    needs=COMMON_NEEDS,
    points=on_each_disk("ext4", variants=("8", "1", "2", "32"), size_bytes=64 * MIB),
    steps=_many,
)
