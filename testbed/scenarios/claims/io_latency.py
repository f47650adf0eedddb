"""io.latency: a cgroup with a latency target slows another one that floods the disk through buffered loops (patch 4).

Kernels of distributions are built without io.latency.
"""

from __future__ import annotations

from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.host.admission import Cores
from testbed.scenarios.harness import FRESH, open_harness
from testbed.scenarios.rate_measurement import JOBS, parse_iops
from testbed.scenarios.scenario import COMMON_NEEDS, FIO, Need, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure

# $1: a file. $2: MAJ:MIN of its disk. The cgroup `quiet` reads the file, and `noisy` floods loops on other parts of it;
# first without a target, then with a latency target of `quiet` that no disk meets. io.latency shortens the queue of
# `noisy` step by step, and a loop has only one read in flight: so it takes eight loops and some seconds.
_LATENCY = f"""\
{JOBS}
mkdir /sys/fs/cgroup/noisy /sys/fs/cgroup/quiet || exit 1
loops=""
for part in 0 1 2 3 4 5 6 7; do
    loop=$(losetup -r -f --show --offset $((part << 22)) --sizelimit 4M "$1") || exit 1
    loops=${{loops:+$loops:}}$loop
done
for name in free held; do
    {FRESH}
    [ $name = free ] || echo "$2 target=1" >/sys/fs/cgroup/quiet/io.latency || exit 1
    [ $name = free ] || {{ {survey.TAKE}; }}
    job quiet-$name quiet "$1" 10 --ramp_time=10s --bs=4k --offset=32M --size=32M --iodepth=8 --ioengine=libaio &
    job noisy-$name noisy "$loops" 10 --ramp_time=10s --bs=4k --iodepth=32 --ioengine=libaio
    wait $! || exit 1
done
losetup -d ${{loops//:/ }}
for name in free held; do iops noisy-$name; done
"""


# Measured without a target: 38 IOPS; the profile of the disk allows 80. A rate below the least is unclear.
_LEAST_IOPS = 8


def judge_held(held: float, free: float) -> Gap:
    """Judge the rate of the flooding cgroup in IOPS: `held` beside a cgroup with a target, `free` without one."""
    if free < _LEAST_IOPS or not 0 <= held <= 2 * free:
        return Gap.UNCLEAR
    kept = held / free
    return Gap.CLOSED if kept <= 0.5 else Gap.OPEN if kept >= 0.8 else Gap.UNCLEAR


async def _latency(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        done = await guest.script(
            _LATENCY, harness.file, harness.device, interpreter="bash", timeout_s=guest.deadlines.command_s * 3
        )
    rates = parse_iops(done.stdout, ("noisy-free", "noisy-held"), f"guest {guest.name}: fio under io.latency")
    free, held = rates["noisy-free"], rates["noisy-held"]
    kept = held / free if free else 0.0
    return Evidence(
        claim=judge_held(held, free),
        reason=f"beside a cgroup with io.latency the other one keeps {kept:.0%} of its rate through loops",
        measures=(
            Measure(
                name="without a target", value=round(free, 1), unit="IOPS", source="fio in noisy, through eight loops"
            ),
            Measure(
                name="with a target", value=round(held, 1), unit="IOPS", source="the same, io.latency of quiet set"
            ),
        ),
        controls=(
            Control(
                name="it ran", expected=f"{_LEAST_IOPS} IOPS or more", got=f"{free} IOPS", holds=free >= _LEAST_IOPS
            ),
        ),
    )


IO_LATENCY = Scenario(
    name="io-latency",
    claim="io.latency of one cgroup holds back another one that floods the disk through buffered loops",
    patches=(4,),
    predicted_base="it keeps its rate: its I/O is the root's",
    predicted_patched="it keeps less than half",
    source="loop: charge i/o to mem and blk cg (patch 4); io.latency (Documentation/admin-guide/cgroup-v2.rst)",
    what="A disk that behaves like a 7200 rpm HDD: 4K reads through eight loops beside a cgroup with io.latency of 1 "
    "us, and without",
    needs=(
        *COMMON_NEEDS,
        FIO,
        Need(
            what="CONFIG_BLK_CGROUP_IOLATENCY",
            test="mkdir -p /sys/fs/cgroup/probe && test -e /sys/fs/cgroup/probe/io.latency",
        ),
    ),
    points=on_each_disk("ext4", profile="hdd-7200", size_bytes=64 * 1024 * 1024),
    steps=_latency,
    cores=Cores.ALONE,
    cpus=2,
    found="6.1 with the flavour `iolatency`: 38 IOPS without a target, 9 with it; with the ablation no-io-charge 38 "
    "and 38",
)
