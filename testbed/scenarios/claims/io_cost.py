"""io.cost: cgroups that read through a loop stay within the budget of its disk, and an important one keeps its share.

These scenarios measure time, so that no other guest runs beside them (see `io_limits`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.host.admission import Cores
from testbed.scenarios.claims.io_limits import judge_limit, limit_control
from testbed.scenarios.harness import FRESH, open_harness
from testbed.scenarios.rate_measurement import JOBS, RATE, parse_iops, parse_rates
from testbed.scenarios.scenario import COMMON_NEEDS, FIO, Need, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure
from testbed.units import MIB

# The budget comes from a cost model, not from the disk: bytes and requests per second, at a fixed rate of 100 %.
_COST_BYTES, _BUDGET_IOPS = 2_000_000, 100
# Up to 172 IOPS on a budget of 100 were measured, from saved budget. A rate below the least is unclear.
_MOST_KEPT, LEAST_IOPS = 3, 10
_COST = """\
cost() {
    local model="rbps=$3 rseqiops=100 rrandiops=100 wbps=$3 wseqiops=100 wrandiops=100"
    echo "$1 ctrl=user model=linear $model" >/sys/fs/cgroup/io.cost.model
    echo "$1 enable=$2 ctrl=user rpct=0 wpct=0 min=100 max=100" >/sys/fs/cgroup/io.cost.qos
}
"""
_IO_COST = f"""\
{RATE}
{_COST}
mkdir a || exit 1
cost "$3" 1 {_COST_BYTES} || exit 1
{FRESH}
{survey.TAKE}
readers=
for n in 0 1 2; do rate a "$1" 2 $((n * 4)) loop-$n & readers="$readers $!"; done
for reader in $readers; do wait "$reader" || exit 1; done
losetup --direct-io=on "$1" && rate a "$1" 2 16 dio
rate a "$2" 2 24 file
losetup --direct-io=off "$1"
cost "$3" 0 {_COST_BYTES}
"""


async def _iocost(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        done = await guest.script(
            _IO_COST,
            harness.loop,
            harness.file,
            harness.device,
            interpreter="bash",
            timeout_s=guest.deadlines.command_s * 2,
        )
    loops = ("loop-0", "loop-1", "loop-2")
    rates = parse_rates(done.stdout, (*loops, "dio", "file"), f"guest {guest.name}: reads under io.cost")
    loop = sum(rates[name] for name in loops)
    return Evidence(
        claim=judge_limit(loop / _COST_BYTES),
        reason=f"three readers get {loop / MIB:.2f} MiB/s through the loop "
        f"on a budget of {_COST_BYTES / MIB:.2f} MiB/s",
        measures=(
            Measure(
                name="rate of three readers",
                value=round(loop),
                unit="bytes/s",
                source="2M each by dd, the guest's clock",
            ),
        ),
        controls=(
            limit_control("direct-I/O loop", rates["dio"], _COST_BYTES),
            limit_control("file itself, O_DIRECT", rates["file"], _COST_BYTES),
        ),
    )


_INVERSION = f"""\
{_COST}
{JOBS}
mkdir /sys/fs/cgroup/low /sys/fs/cgroup/high || exit 1
losetup -d "$1" && losetup --direct-io=on "$4" "$2" || exit 1
cost "$3" 1 4000000 && echo "default 1" >/sys/fs/cgroup/low/io.weight || exit 1
echo "default 10000" >/sys/fs/cgroup/high/io.weight || exit 1
{survey.TAKE}
for target in "$4" "$2"; do
    name=${{target##*/}}
    job "$name-alone" high "$target" 1s --bs=4k
    job "$name-low" low "$target" 4s --bs=256k --numjobs=3 &
    sleep 1
    job "$name-beside" high "$target" 2s --bs=4k
    wait $! || exit 1
    iops "$name-alone"
    iops "$name-beside"
done
cost "$3" 0 4000000
losetup -d "$4" && losetup "$1" "$2"
"""


def judge_kept(kept: float) -> Gap:
    """Judge the part of its rate that the important cgroup keeps beside the other; far beyond the budget is unclear."""
    if not 0 <= kept <= _MOST_KEPT:
        return Gap.UNCLEAR
    if kept >= 0.7:
        return Gap.CLOSED
    return Gap.OPEN if kept <= 0.2 else Gap.UNCLEAR


def _kept(rates: Mapping[str, float], name: str) -> float:
    """Divide the rate beside the other cgroup by the rate alone, which counts only up to the budget.

    A cgroup may first spend the budget that it saved while it was idle. NaN if it did almost nothing alone.
    """
    alone = rates[f"{name}-alone"]
    return rates[f"{name}-beside"] / min(alone, _BUDGET_IOPS) if alone >= LEAST_IOPS else math.nan


async def _inversion(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        device = f"/dev/{point.variant}"
        limit = guest.deadlines.command_s * 2
        done = await guest.script(
            _INVERSION, harness.loop, harness.file, harness.device, device, interpreter="bash", timeout_s=limit
        )
    names = tuple(f"{target}-{when}" for target in (point.variant, "file") for when in ("alone", "beside"))
    rates = parse_iops(done.stdout, names, f"guest {guest.name}: fio under io.cost")
    loop, file = _kept(rates, point.variant), _kept(rates, "file")
    alone, beside = rates[f"{point.variant}-alone"], rates[f"{point.variant}-beside"]
    return Evidence(
        claim=judge_kept(loop),
        reason=f"the important cgroup reads {beside:.1f} times a second beside the other, {alone:.1f} alone; "
        f"of its budget of {_BUDGET_IOPS} it keeps {loop:.0%}",
        measures=(
            Measure(name="alone", value=round(alone, 1), unit="IOPS", source="fio, 4K random reads, weight 10000"),
            Measure(
                name="beside",
                value=round(beside, 1),
                unit="IOPS",
                source="the same beside 3 jobs of 256K random reads, weight 1",
            ),
        ),
        controls=(
            Control(
                name="file itself, O_DIRECT",
                expected="keeps at least 70 %",
                got=f"{file:.0%}",
                holds=judge_kept(file) is Gap.CLOSED,
            ),
        ),
    )


_IOCOST_NEED = Need(what="CONFIG_BLK_CGROUP_IOCOST", test="test -e /sys/fs/cgroup/io.cost.model")

IOCOST = Scenario(
    name="iocost",
    claim="A cgroup's reads through a buffered loop stay within the budget of io.cost",
    patches=(4,),
    predicted_base="three readers get several times the budget",
    predicted_patched="three readers share the budget",
    source="loop: charge i/o to mem and blk cg (patch 4); io.cost (Documentation/admin-guide/cgroup-v2.rst)",
    what="io.cost with a linear model of 2 MB/s and 100 requests a second: three readers of 2M each through the loop",
    needs=(*COMMON_NEEDS, _IOCOST_NEED),
    points=on_each_disk("ext4"),
    steps=_iocost,
    cores=Cores.ALONE,
    cpus=2,
)

INVERSION = Scenario(
    name="inversion",
    claim="An important cgroup keeps its rate on a loop that an unimportant one floods",
    patches=(1,),
    predicted_base="it keeps hardly any: its requests wait behind the other's in the one thread",
    predicted_patched="it keeps its rate",
    source='cover letter: "priority inversion"; max_active of v5 as posted was the number of the device: '
    "loop0 and loop1 differ",
    what="io.cost on a direct-I/O loop: weight 10000 reads 4K at random, alone and beside three jobs of 256K with "
    "weight 1",
    needs=(*COMMON_NEEDS, _IOCOST_NEED, FIO),
    points=on_each_disk("ext4", variants=("loop0", "loop1")),
    steps=_inversion,
    cores=Cores.ALONE,
    cpus=2,
)
