"""Bugs that only debug kernels report: wrong lock order, use after free, and memory leaks.

On kernels of distributions these scenarios are skipped. Each also checks that the reader is charged, so that a kernel
without the series shows the gap here, too. A report of the kernel counts as much as a missing charge.
"""

from __future__ import annotations

from testbed.guest.channels.kernel_log import Kind
from testbed.guest.guest import Guest
from testbed.guest.shell_functions import ENTER, printed_number
from testbed.host.admission import Cores
from testbed.scenarios.claims.read import READ_BYTES, read_command
from testbed.scenarios.controls import usual_read_controls
from testbed.scenarios.harness import FRESH, Harness, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Need, Point, Scenario, debugfs_need, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure, join_parts

# Without lockups and stalls, which a debug kernel under emulation on a busy host reports anyway.
_SPLATS = frozenset(kind for kind in Kind if kind.splat) - {Kind.LOCKUP, Kind.RCU_STALL}


async def _charged_and_silent(harness: Harness, script: str, timeout_s: float) -> Evidence:
    """Measure the charge of a read, run a script ($1: loop, $2: its file), and look for reports of the kernel."""
    before = len(harness.guest.console.findings)
    charge = await harness.meter("reader", read_command(harness.loop))
    done = await harness.guest.script(script, harness.loop, harness.file, interpreter="bash", timeout_s=timeout_s)
    rounds = printed_number(done.stdout, "rounds", f"guest {harness.guest.name}: what its script has done")
    usual = await usual_read_controls(harness)
    charged = join_parts(harness.part(charge, "rbytes", asked=READ_BYTES))
    splats = [finding for finding in harness.guest.console.findings[before:] if finding.kind in _SPLATS]
    report = f"the kernel said: {splats[0].text}" if splats else "the kernel said nothing"
    return Evidence(
        claim=Gap.OPEN if splats and charged.gap is Gap.CLOSED else Gap.UNCLEAR if splats else charged.gap,
        reason=f"the reader has {harness.share(charge, 'rbytes'):.1%} of the disk's bytes{charged.note}; "
        f"{report} in {rounds} rounds",
        measures=(
            harness.charged_reads(charge),
            Measure(name="splats", value=len(splats), unit="lines", source="console"),
        ),
        controls=(
            Control(name="all rounds were run", expected="1 or more", got=f"{rounds}", holds=rounds > 0),
            *usual.controls,
        ),
        balances=(harness.balance(charge, "rbytes"), *usual.balances),
    )


# Reading backing_file in sysfs takes the loop's lock, which completions once took with interrupts off.
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

# Removes a loop with LOOP_CTL_REMOVE (include/uapi/linux/loop.h), for which losetup has no option.
_REMOVE = r"""
remove() {
    perl -e 'open my $ctl, "+<", "/dev/loop-control" or die "$!";
        ioctl $ctl, 0x4C81, 0 + shift or die "$!"' "${1#/dev/loop}"
}
"""
# Makes nine loops on the files $2-N. For each, a cgroup sends one request through it and is removed at once: the
# workers are idle then, and their timers are armed.
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

# Eight loops are detached and removed from 55 to 65 s after their last request: the timer that frees idle workers fires
# after 60 s, or up to 2 s later, as timers of a minute may. The ninth remains, and another cgroup uses it once its
# worker is freed.
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

# The loops are removed at once, with idle workers. kmemleak reports leaks that are older than 5 s, with KERN_INFO,
# which the console shows at level 7; what it suspected before is cleared.
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
    async with open_harness(guest, point) as harness:
        return await _charged_and_silent(harness, _LOCK_ORDER, guest.deadlines.command_s * 4)


async def _race(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        return await _charged_and_silent(harness, _RACE, guest.deadlines.command_s * 4 + 70)


async def _leak(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        return await _charged_and_silent(harness, _LEAK, guest.deadlines.command_s * 8)


_BASE = "nothing is the reader's"

LOCK_ORDER = Scenario(
    name="lock-order",
    claim="A loop that charges its users is read, shown in sysfs and detached without a lockdep report",
    patches=(1, 4),
    predicted_base=_BASE,
    predicted_patched="the disk's bytes are the reader's, and lockdep is silent",
    source='changelog of the cover letter: "fix irq lock ordering bug"; destroy_workqueue under the spinlock in v5 '
    "as posted",
    what="16M read; then five times: two cgroups read while backing_file is shown 50 times in sysfs, and the loop is "
    "detached",
    needs=(*COMMON_NEEDS, Need(what="CONFIG_PROVE_LOCKING", test="test -e /proc/lockdep_stats")),
    points=on_each_disk("ext4"),
    steps=_lock_order,
    cpus=2,
    found="6.1 with every flavour but `leaks`: silent; with the ablation destroyed-under-lock `BUG: sleeping function "
    "called from invalid context` and `[ BUG: Invalid wait context ]` (docs/results/sensitivity.md)",
)

DESTROY_RACE = Scenario(
    name="destroy-race",
    claim="A loop that charges its users may go at the moment when its idle workers are freed, and may be used after "
    "it",
    patches=(1,),
    predicted_base=_BASE,
    predicted_patched="the disk's bytes are the reader's, and KASAN is silent",
    source='changelog of the cover letter: "fix race condition between loop destruction and deferred cleanup"',
    what="16M read; eight loops whose users are gone are detached and removed from 55 to 65 s after their last "
    "request, a "
    "ninth is used again after that",
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
    source="loop: use worker per cgroup instead of kworker (patch 1): a worker for each cgroup, freed when idle or "
    "with its loop",
    what="16M read; nine loops with idle workers of cgroups that are gone are detached and removed, then memory is "
    "scanned twice",
    needs=(*COMMON_NEEDS, debugfs_need("CONFIG_DEBUG_KMEMLEAK", "/sys/kernel/debug/kmemleak")),
    points=on_each_disk("ext4"),
    steps=_leak,
    cpus=2,
)
