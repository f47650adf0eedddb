"""What only a kernel made for debugging can show: lock order, use after free, leaks, a worker that cannot be allocated, io.latency.

Distribution kernels skip these. Each is a claim about charging as well, so that a kernel without the series shows the gap here, too; a
splat while the cgroup is charged is as bad as no charge.
"""

from __future__ import annotations

from testbed.guest.channels.kernel_log import Kind
from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.guest.shell_functions import ENTER, printed_number
from testbed.host.admission import Cores
from testbed.scenarios.claims.deferred_destroy import DYING, parse_dying
from testbed.scenarios.claims.read import READ_BYTES, read_command
from testbed.scenarios.controls import usual_read_controls
from testbed.scenarios.harness import FRESH, Harness, open_harness
from testbed.scenarios.rate_measurement import JOBS, parse_iops
from testbed.scenarios.scenario import COMMON_NEEDS, FIO, Need, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure, join_parts
from testbed.units import parse_whole

# Lockups and stalls are left out: a debug kernel under emulation, on a host that is busy, has them of its own.
_SPLATS = frozenset(kind for kind in Kind if kind.splat) - {Kind.LOCKUP, Kind.RCU_STALL}


async def _charged_and_silent(at: Harness, script: str, timeout_s: float) -> Evidence:
    """Reads that are the reader's, then `script` ($1: loop, $2: its file), and what the kernel said meanwhile."""
    before = len(at.guest.console.findings)
    claim = await at.meter("reader", read_command(at.loop))
    done = await at.guest.script(script, at.loop, at.file, interpreter="bash", timeout_s=timeout_s)
    rounds = printed_number(done.stdout, "rounds", f"guest {at.guest.name}: what its script has done")
    known = await usual_read_controls(at)
    charged = join_parts(at.part(claim, "rbytes", asked=READ_BYTES))
    splats = [finding for finding in at.guest.console.findings[before:] if finding.kind in _SPLATS]
    said = f"the kernel said: {splats[0].text}" if splats else "the kernel said nothing"
    return Evidence(
        claim=Gap.OPEN if splats and charged.gap is Gap.CLOSED else Gap.UNCLEAR if splats else charged.gap,
        reason=f"the reader has {at.share(claim, 'rbytes'):.1%} of the disk's bytes{charged.note}; {said} in {rounds} rounds",
        measures=(
            Measure(
                name="charged reads",
                value=claim.io(at.device, "rbytes"),
                unit="bytes",
                source="io.stat rbytes of reader",
            ),
            Measure(name="splats", value=len(splats), unit="lines", source="console"),
        ),
        controls=(
            Control(name="all rounds were run", expected="1 or more", got=f"{rounds}", holds=rounds > 0),
            *known.controls,
        ),
        balances=(at.balance(claim, "rbytes"), *known.balances),
    )


# The backing file's name is shown under the loop's lock, which completions once took with interrupts off.
_LOCK_ORDER = f"""\
{ENTER}
cd /sys/fs/cgroup && mkdir order-a order-b || exit 1
rounds=0
while [ $rounds -lt 5 ]; do
    {FRESH}
    readers=
    for cgroup in order-a order-b; do
        (enter $cgroup || exit 1; exec dd "if=$1" of=/dev/null bs=64k count=128 iflag=direct status=none) &
        readers="$readers $!"
    done
    for shown in $(seq 50); do read -r name <"/sys/block/${{1##*/}}/loop/backing_file"; done
    for reader in $readers; do wait $reader || exit 1; done
    losetup -d "$1" && losetup "$1" "$2" || exit 1
    rounds=$((rounds + 1))
done
echo "rounds $rounds"
"""

# Of a loop that is to go: LOOP_CTL_REMOVE (include/uapi/linux/loop.h), for which losetup has no option.
_REMOVE = r"""
remove() { perl -e 'open my $ctl, "+<", "/dev/loop-control" or die "$!"; ioctl $ctl, 0x4C81, 0 + shift or die "$!"' "${1#/dev/loop}"; }
"""
# $2-N: files. One request of a cgroup that goes at once, through each of the loops: their workers are idle then, and their timers set.
_IDLE_WORKERS = (
    ENTER
    + """\
cd /sys/fs/cgroup || exit 1
loops=()
for n in 0 1 2 3 4 5 6 7 8; do
    truncate -s 4M "$2-$n" && loop=$(losetup --direct-io=on --find --show "$2-$n") && mkdir idle-$n || exit 1
    (enter idle-$n || exit 1; exec dd "if=$loop" of=/dev/null bs=4k count=1 iflag=direct status=none) || exit 1
    rmdir idle-$n || exit 1
    loops+=("$loop")
done
"""
)

# Eight loops are detached and removed from 55 to 65 s after their last request: the timer that frees idle workers fires at 60 s, and as
# timers of a minute may, up to 2 s later. The ninth stays, and is used by another cgroup once its worker is gone.
_RACE = f"""\
{_REMOVE}
SECONDS=0
{_IDLE_WORKERS}
sleep $((55 - SECONDS))
for n in 0 1 2 3 4 5 6 7; do
    losetup -d "${{loops[n]}}" && remove "${{loops[n]}}" && rm "$2-$n" || exit 1
    sleep 1.4
done
[ $SECONDS -ge 68 ] || sleep $((68 - SECONDS))
mkdir last || exit 1
(enter last || exit 1; exec dd "if=${{loops[8]}}" of=/dev/null bs=4k skip=1 count=1 iflag=direct status=none) || exit 1
losetup -d "${{loops[8]}}" && rm "$2-8" || exit 1
echo "rounds 8"
"""

# The loops are removed at once, with idle workers. kmemleak tells of what is older than 5 s, where the console shows KERN_INFO (7); what it
# suspected before is cleared.
_LEAK = f"""\
{_REMOVE}
leaks=/sys/kernel/debug/kmemleak
echo scan=off >$leaks && echo scan >$leaks && echo clear >$leaks || exit 1
{_IDLE_WORKERS}
for n in 0 1 2 3 4 5 6 7 8; do losetup -d "${{loops[n]}}" && remove "${{loops[n]}}" && rm "$2-$n" || exit 1; done
sleep 6
level=$(cut -f 1 /proc/sys/kernel/printk) && echo 7 >/proc/sys/kernel/printk
echo scan >$leaks && echo scan >$leaks || exit 1
echo "$level" >/proc/sys/kernel/printk
echo "rounds 9"
"""


async def _lock_order(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as at:
        return await _charged_and_silent(at, _LOCK_ORDER, guest.spec.deadlines.command_s * 4)


async def _race(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as at:
        return await _charged_and_silent(at, _RACE, guest.spec.deadlines.command_s * 4 + 70)


async def _leak(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as at:
        return await _charged_and_silent(at, _LEAK, guest.spec.deadlines.command_s * 8)


# $1: loop. $2: fails, or not. A task whose slab allocations fail where they may not wait, as that of a worker may not.
_FAILING = """\
fail=/sys/kernel/debug/failslab
echo 1 >$fail/task-filter && echo 100 >$fail/probability && echo 100000 >$fail/times && echo 0 >$fail/verbose
"""
_FAIL_COMMAND = "echo 1 >/proc/self/make-it-fail; exec"
_GONE = (
    DYING
    + """\
cd /sys/fs/cgroup && still && rmdir failing || exit 1
echo 3 >/proc/sys/vm/drop_caches
SECONDS=0
while [ $SECONDS -lt 120 ]; do
    now=$(dying) || exit 1
    [ $now = 0 ] && [ $SECONDS -ge 5 ] && break
    sleep 1
done
echo "dying $SECONDS $now"
"""
)


async def _no_worker(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as at:
        await guest.script(_FAILING)
        failed = await at.meter("failing", f"{_FAIL_COMMAND} {read_command(at.loop)}")
        left = parse_whole(
            (await guest.script("cat /sys/kernel/debug/failslab/times")).stdout.strip(),
            f"guest {guest.name}: failslab/times",
        )
        await guest.script("echo 0 >/sys/kernel/debug/failslab/probability")
        after = await at.meter("failing", read_command(at.loop))
        removed = await guest.script(_GONE, interpreter="bash", timeout_s=guest.spec.deadlines.command_s + 130)
        gone = parse_dying(removed.stdout, f"guest {guest.name}: nr_dying_descendants")
        known = await usual_read_controls(at)
    lost, later, injected = at.share(failed, "rbytes"), at.share(after, "rbytes"), 100_000 - left
    charged = join_parts(at.part(after, "rbytes", asked=READ_BYTES))
    gap = charged.gap
    if gap is Gap.CLOSED and (gone is None or at.part(failed, "rbytes", asked=READ_BYTES).gap is not Gap.OPEN):
        gap = Gap.OPEN if gone is None else Gap.UNCLEAR
    stays = "stays for ever" if gone is None else f"is gone after {gone:.0f} s"
    return Evidence(
        claim=gap,
        reason=f"without a worker the reader has {lost:.1%} of the disk's bytes, later {later:.1%}{charged.note}; removed, it {stays}",
        measures=(
            Measure(
                name="charged without a worker",
                value=failed.io(at.device, "rbytes"),
                unit="bytes",
                source="io.stat rbytes",
            ),
            Measure(name="charged later", value=after.io(at.device, "rbytes"), unit="bytes", source="io.stat rbytes"),
        ),
        controls=(
            Control(name="allocations failed", expected="1 or more", got=f"{injected}", holds=injected > 0),
            Control(
                name="all was read",
                expected=f"{READ_BYTES} bytes from the disk",
                got=f"{at.moved(failed, 'rbytes')}",
                holds=at.moved(failed, "rbytes") >= READ_BYTES * 0.95,
            ),
            *known.controls,
        ),
        balances=(at.balance(failed, "rbytes"), at.balance(after, "rbytes"), *known.balances),
    )


# $1: a file. $2: MAJ:MIN of its disk. A cgroup with a target that no disk meets reads the file, another one floods loops on other parts of
# it; first without the target. io.latency makes the other's queue shorter by and by, and a loop has one read at a time under way: it takes
# many of them, and some seconds.
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


# 38 IOPS without a target were measured; the disk's profile allows 80. From the least on a rate tells something.
_LEAST_IOPS = 8


def judge_held(held: float, free: float) -> Gap:
    """Judge the rate of the cgroup that floods the disk beside one with a target, over its rate beside one without; IOPS."""
    if free < _LEAST_IOPS or not 0 <= held <= 2 * free:
        return Gap.UNCLEAR
    kept = held / free
    return Gap.CLOSED if kept <= 0.5 else Gap.OPEN if kept >= 0.8 else Gap.UNCLEAR


async def _latency(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as at:
        done = await guest.script(
            _LATENCY, at.file, at.device, interpreter="bash", timeout_s=guest.spec.deadlines.command_s * 3
        )
    seen = parse_iops(done.stdout, ("noisy-free", "noisy-held"), f"guest {guest.name}: fio under io.latency")
    free, held = seen["noisy-free"], seen["noisy-held"]
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


_BASE = "nothing is the reader's"
_DEBUGFS = "{ test -e /sys/kernel/debug/block || mount -t debugfs none /sys/kernel/debug; } 2>/dev/null; test -e"

LOCK_ORDER = Scenario(
    name="lock-order",
    claim="A loop that charges its users is read, shown in sysfs and detached without a lockdep report",
    patches=(1, 4),
    predicted_base=_BASE,
    predicted_patched="the disk's bytes are the reader's, and lockdep is silent",
    source='changelog of the cover letter: "fix irq lock ordering bug"; destroy_workqueue under the spinlock in v5 as posted',
    what="16M read; then five times: two cgroups read while backing_file is shown 50 times in sysfs, and the loop is detached",
    needs=(*COMMON_NEEDS, Need(what="CONFIG_PROVE_LOCKING", test="test -e /proc/lockdep_stats")),
    points=on_each_disk("ext4"),
    steps=_lock_order,
    cpus=2,
    found="6.1 with every flavour but `leaks`: silent; with the ablation destroyed-under-lock `BUG: sleeping function called from invalid "
    "context` and `[ BUG: Invalid wait context ]` (docs/results/sensitivity.md)",
)

DESTROY_RACE = Scenario(
    name="destroy-race",
    claim="A loop that charges its users may go at the moment when its idle workers are freed, and may be used after it",
    patches=(1,),
    predicted_base=_BASE,
    predicted_patched="the disk's bytes are the reader's, and KASAN is silent",
    source='changelog of the cover letter: "fix race condition between loop destruction and deferred cleanup"',
    what="16M read; eight loops whose users are gone are detached and removed from 55 to 65 s after their last request, a ninth is used "
    "again after that",
    needs=(*COMMON_NEEDS, Need(what="CONFIG_KASAN", test="dmesg | grep -q KernelAddressSanitizer")),
    points=on_each_disk("ext4"),
    steps=_race,
    cores=Cores.IDLE,
    cpus=2,
    found="6.1 with every flavour but `leaks`: silent; with the ablation destroyed-under-lock as `lock-order`",
)

LEAK = Scenario(
    name="leak",
    claim="A loop that charges its users leaves no memory behind when it goes",
    patches=(1,),
    predicted_base=_BASE,
    predicted_patched="the disk's bytes are the reader's, and kmemleak is silent",
    source="loop: use worker per cgroup instead of kworker (patch 1): a worker for each cgroup, freed when idle or with its loop",
    what="16M read; nine loops with idle workers of cgroups that are gone are detached and removed, then memory is scanned twice",
    needs=(*COMMON_NEEDS, Need(what="CONFIG_DEBUG_KMEMLEAK", test=f"{_DEBUGFS} /sys/kernel/debug/kmemleak")),
    points=on_each_disk("ext4"),
    steps=_leak,
    cpus=2,
)

NO_WORKER = Scenario(
    name="no-worker",
    claim="Where a worker cannot be allocated the root's does the I/O, and the cgroup can still go",
    patches=(1,),
    predicted_base=_BASE,
    predicted_patched="no charge while allocations fail, all later; the removed cgroup goes within two minutes",
    source="loop: use worker per cgroup instead of kworker (patch 1): no memory for a worker means the root worker; v5 leaked a css there",
    what="16M read by a task whose slab allocations fail (failslab), 16M without; the cgroup removed, its dying descendants watched",
    needs=(*COMMON_NEEDS, Need(what="CONFIG_FAILSLAB", test=f"{_DEBUGFS} /sys/kernel/debug/failslab/task-filter")),
    points=on_each_disk("ext4"),
    steps=_no_worker,
    cores=Cores.IDLE,
    found="6.1 with every flavour but `leaks`: 0.0% charged while allocations fail, 100.0% later; the cgroup is gone after 59 s",
)

IO_LATENCY = Scenario(
    name="io-latency",
    claim="io.latency of one cgroup holds back another one that floods the disk through buffered loops",
    patches=(4,),
    predicted_base="it keeps its rate: its I/O is the root's",
    predicted_patched="it keeps less than half",
    source="loop: charge i/o to mem and blk cg (patch 4); io.latency (Documentation/admin-guide/cgroup-v2.rst)",
    what="A disk that behaves like a 7200 rpm HDD: 4K reads through eight loops beside a cgroup with io.latency of 1 us, and without",
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
    found="6.1 with the flavour `iolatency`: 38 IOPS without a target, 9 with it; with the ablation no-io-charge 38 and 38",
)
