"""BFQ's weights: of two cgroups that read through one buffered loop, the heavier gets more.

Before the series, both reads were charged to the root.
"""

from __future__ import annotations

import math

from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.host.admission import Cores
from testbed.scenarios.claims.io_cost import LEAST_IOPS
from testbed.scenarios.harness import FRESH, open_harness
from testbed.scenarios.rate_measurement import JOBS, parse_iops
from testbed.scenarios.scenario import COMMON_NEEDS, FIO, Need, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure
from testbed.units import MIB

_WEIGHT = f"""\
{JOBS}
modprobe bfq || exit 1
queue=/sys/block/${{3##*/}}/queue
echo bfq >"$queue/scheduler" || exit 1
echo 0 >"$queue/iosched/low_latency" && echo 1 >"$queue/iosched/strict_guarantees" || exit 1
mkdir /sys/fs/cgroup/low /sys/fs/cgroup/high || exit 1
echo 1 >/sys/fs/cgroup/low/io.bfq.weight && echo 1000 >/sys/fs/cgroup/high/io.bfq.weight || exit 1
{FRESH}
{survey.TAKE}
for target in "$1" "$2"; do
    name=${{target##*/}}
    # Each cgroup reads its own half, and no page twice: otherwise the page cache would answer.
    job "$name-low" low "$target" 3s --bs=64k --numjobs=4 --size=24M &
    low=$!
    job "$name-high" high "$target" 3s --bs=64k --numjobs=4 --size=24M --offset=32M || exit 1
    wait $low || exit 1
    iops "$name-low"
    iops "$name-high"
done
"""


# The ratio cannot exceed that of the weights. fio shows whole requests per second, so that 0 may be nearly 1.
_MOST_RATIO, _LEAST_SHOWN = 1000, 1.0


def judge_weight(heavy: float, light: float) -> Gap:
    """Judge the ratio of the rates of the heavy and the light cgroup, in IOPS."""
    if not (math.isfinite(heavy) and heavy + light >= LEAST_IOPS and light >= 0) or heavy > _MOST_RATIO * max(
        light, _LEAST_SHOWN
    ):
        return Gap.UNCLEAR
    ratio = _ratio(heavy, light)
    if ratio >= 2.5:
        return Gap.CLOSED
    return Gap.OPEN if ratio <= 1.5 else Gap.UNCLEAR


def _ratio(heavy: float, light: float) -> float:
    return heavy / max(light, 0.1)


async def _weight(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        limit = guest.deadlines.command_s * 2
        disk = guest.disks[harness.disk].path
        done = await guest.script(_WEIGHT, harness.loop, harness.file, disk, interpreter="bash", timeout_s=limit)
    names = tuple(f"{target}-{weight}" for target in ("loop0", "file") for weight in ("low", "high"))
    rates = parse_iops(done.stdout, names, f"guest {guest.name}: fio under BFQ")
    loop, file = ((rates[f"{name}-high"], rates[f"{name}-low"]) for name in ("loop0", "file"))
    return Evidence(
        claim=judge_weight(*loop),
        reason=f"a weight of 1000 gets {_ratio(*loop):.1f} times as many requests as a weight of 1",
        measures=(
            Measure(
                name="weight 1",
                value=round(rates["loop0-low"], 1),
                unit="IOPS",
                source="fio, 64K random reads through the loop",
            ),
            Measure(name="weight 1000", value=round(rates["loop0-high"], 1), unit="IOPS", source="the same, at once"),
        ),
        controls=(
            Control(
                name="file itself, O_DIRECT",
                expected="at least 2.5 times",
                got=f"{_ratio(*file):.1f}",
                holds=judge_weight(*file) is Gap.CLOSED,
            ),
        ),
    )


WEIGHT = Scenario(
    name="io-weight",
    claim="BFQ weighs cgroups that read through a buffered loop",
    patches=(4,),
    predicted_base="weights of 1 and 1000 get the same: both are the root's",
    predicted_patched="the heavier cgroup gets more",
    source="loop: charge i/o to mem and blk cg (patch 4); BFQ (Documentation/block/bfq-iosched.rst)",
    what="A disk that behaves like a 7200 rpm HDD, BFQ with strict guarantees: four jobs of 64K random reads with each "
    "weight, at once",
    needs=(
        *COMMON_NEEDS,
        Need(what="CONFIG_BFQ_GROUP_IOSCHED", test="modprobe -q bfq"),
        FIO,
    ),
    points=on_each_disk("ext4", profile="hdd-7200", size_bytes=64 * MIB),
    steps=_weight,
    cores=Cores.ALONE,
    cpus=2,
)
