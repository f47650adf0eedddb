"""No memory for a worker: the root's worker does the I/O, and the cgroup can still be freed (patch 1).

This needs a kernel with fault injection for slab allocations (failslab).
"""

from __future__ import annotations

from testbed.guest.guest import Guest
from testbed.host.admission import Cores
from testbed.scenarios.claims.deferred_destroy import DYING, parse_dying
from testbed.scenarios.claims.read import READ_BYTES, read_command
from testbed.scenarios.controls import usual_read_controls
from testbed.scenarios.harness import open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, debugfs_need, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure, join_parts
from testbed.units import parse_whole

# Makes slab allocations of marked tasks fail if they may not wait; the allocation of a worker may not.
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
    async with open_harness(guest, point) as harness:
        await guest.script(_FAILING)
        failed = await harness.meter("failing", f"{_FAIL_COMMAND} {read_command(harness.loop)}")
        left = parse_whole(
            (await guest.script("cat /sys/kernel/debug/failslab/times")).stdout.strip(),
            f"guest {guest.name}: failslab/times",
        )
        await guest.script("echo 0 >/sys/kernel/debug/failslab/probability")
        after = await harness.meter("failing", read_command(harness.loop))
        removed = await guest.script(_GONE, interpreter="bash", timeout_s=guest.deadlines.command_s + 130)
        gone = parse_dying(removed.stdout, f"guest {guest.name}: nr_dying_descendants")
        usual = await usual_read_controls(harness)
    lost, later, injected = harness.share(failed, "rbytes"), harness.share(after, "rbytes"), 100_000 - left
    charged = join_parts(harness.part(after, "rbytes", asked=READ_BYTES))
    gap = charged.gap
    if gap is Gap.CLOSED and (gone is None or harness.part(failed, "rbytes", asked=READ_BYTES).gap is not Gap.OPEN):
        gap = Gap.OPEN if gone is None else Gap.UNCLEAR
    stays = "stays for ever" if gone is None else f"is gone after {gone:.0f} s"
    return Evidence(
        claim=gap,
        reason=f"without a worker the reader has {lost:.1%} of the disk's bytes, later {later:.1%}{charged.note}; "
        f"removed, it {stays}",
        measures=(
            Measure(
                name="charged without a worker",
                value=failed.io(harness.device, "rbytes"),
                unit="bytes",
                source="io.stat rbytes",
            ),
            Measure(
                name="charged later", value=after.io(harness.device, "rbytes"), unit="bytes", source="io.stat rbytes"
            ),
        ),
        controls=(
            Control(name="allocations failed", expected="1 or more", got=f"{injected}", holds=injected > 0),
            Control(
                name="all was read",
                expected=f"{READ_BYTES} bytes from the disk",
                got=f"{harness.disk_moved(failed, 'rbytes')}",
                holds=harness.disk_moved(failed, "rbytes") >= READ_BYTES * 0.95,
            ),
            *usual.controls,
        ),
        balances=(harness.balance(failed, "rbytes"), harness.balance(after, "rbytes"), *usual.balances),
    )


NO_WORKER = Scenario(
    name="no-worker",
    claim="Where a worker cannot be allocated the root's does the I/O, and the cgroup can still go",
    patches=(1,),
    predicted_base="nothing is the reader's",
    predicted_patched="no charge while allocations fail, all later; the removed cgroup goes within two minutes",
    source="loop: use worker per cgroup instead of kworker (patch 1): no memory for a worker means the root worker; "
    "v5 leaked a css there",
    what="16M read by a task whose slab allocations fail (failslab), 16M without; the cgroup removed, its dying "
    "descendants watched",
    needs=(*COMMON_NEEDS, debugfs_need("CONFIG_FAILSLAB", "/sys/kernel/debug/failslab/task-filter")),
    points=on_each_disk("ext4"),
    steps=_no_worker,
    cores=Cores.IDLE,
    found="6.1 with every flavour but `leaks`: 0.0% charged while allocations fail, 100.0% later; the cgroup is gone "
    "after 59 s",
)
