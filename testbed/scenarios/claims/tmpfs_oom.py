"""Loops on tmpfs: with the series, memory that a loop allocates for a cgroup counts against the cgroup's limit.

Only `oom_kill` is judged: `oom` in memory.events counts attempts, and varies from run to run (3 to 25 were seen).
"""

from __future__ import annotations

import itertools

from testbed import cgroupfs
from testbed.errors import ReadingError
from testbed.guest import shell_functions
from testbed.guest.channels.kernel_log import Kind
from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.guest.shell_functions import ENTER
from testbed.scenarios.scenario import COMMON_NEEDS, COVER_LETTER, Point, Scenario
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure
from testbed.units import parse_decimal, parse_whole

# Steps, sizes and names are those of the cover letter's script, without `sudo` (the guest's shell runs as root). We
# have added the two clocks, the survey, and the lines `inside CGROUP`: a shell that cannot enter the cgroup would
# continue outside of it, where nothing is killed.
_LETTER = """\
set -e
CGROUP=/sys/fs/cgroup/test.slice
LOOP_DEV=/dev/loop0
echo "started $EPOCHREALTIME"
if [[ ! -d $CGROUP ]]; then mkdir $CGROUP; fi
grep '^oom_kill ' $CGROUP/memory.events
# Write more than the limit to tmpfs.
unshare -m bash -c "
echo \\$\\$ > $CGROUP/cgroup.procs;
read -r here < /proc/self/cgroup; echo inside \\$here;
echo 0 > $CGROUP/memory.swap.max;
echo 64M > $CGROUP/memory.max;
mount -t tmpfs -o size=512m tmpfs /tmp;
dd if=/dev/zero of=/tmp/file bs=1M count=256" || true
grep '^oom_kill ' $CGROUP/memory.events
# Write more than the limit through a loop device on tmpfs.
unshare -m bash -c "
echo \\$\\$ > $CGROUP/cgroup.procs;
read -r here < /proc/self/cgroup; echo inside \\$here;
echo 0 > $CGROUP/memory.swap.max;
echo 64M > $CGROUP/memory.max;
mount -t tmpfs -o size=512m tmpfs /tmp;
truncate -s 512m /tmp/backing_file;
losetup $LOOP_DEV /tmp/backing_file;
SURVEY;
dd if=/dev/zero of=$LOOP_DEV bs=1M count=256;
losetup -D $LOOP_DEV" || true
grep '^oom_kill ' $CGROUP/memory.events
echo "ended $EPOCHREALTIME"
""".replace("SURVEY", survey.TAKE)

# $1: name of a new cgroup. $2: `direct`, or a loop device. Prints the cgroup's oom_kill after writing 128M under a
# limit of 64M. Each call writes to another loop, with O_DIRECT: through the loop's page cache, the cgroup that first
# dirtied the block device's inode would pay for writeback, so that a loop first used with -io was seen to charge
# nothing with +io (6.1, one run of five).
_WRITE = (
    ENTER
    + """\
cgroup=/sys/fs/cgroup/$1
mkdir "$cgroup" && echo 0 >"$cgroup/memory.swap.max" && echo 64M >"$cgroup/memory.max" || exit 1
mount -t tmpfs -o size=256m tmpfs /tmp || exit 1
target=/tmp/file
flags=
if [ "$2" != direct ]; then
    truncate -s 256m /tmp/backing_file && losetup "$2" /tmp/backing_file || exit 1
    target=$2
    flags=oflag=direct
fi
[ "$1" != gate-with ] || { SURVEY; }
(enter "$1" || exit 1; exec dd if=/dev/zero "of=$target" bs=1M count=128 status=none $flags)
echo "status $?"
grep '^oom_kill ' "$cgroup/memory.events" || exit 1
[ "$2" = direct ] || losetup -d "$2"
umount /tmp
exit 0
""".replace("SURVEY", survey.TAKE)
)


def parse_oom_kills(output: str, count: int, where: str) -> tuple[int, ...]:
    """Parse the `oom_kill` lines of an output, in order.

    :raise ReadingError: there are not `count` of them, or one is smaller than the one before.
    """
    found = shell_functions.lines(output, "oom_kill")
    if [len(words) for words in found] != [1] * count:
        raise ReadingError(where, f"{count} readings of oom_kill", output[-200:] or "nothing")
    kills = tuple(parse_whole(words[0], where) for words in found)
    for before, after in itertools.pairwise(kills):
        cgroupfs.growth(before, after, f"{where}, oom_kill")
    return kills


def _kills(kills: int) -> Gap:
    return Gap.CLOSED if kills > 0 else Gap.OPEN


async def _oom_tmpfs(guest: Guest, point: Point) -> Evidence:
    del point
    done = await guest.script(_LETTER, interpreter="bash", timeout_s=guest.deadlines.command_s * 3)
    where = f"guest {guest.name}: the cover letter's script"
    counts = parse_oom_kills(done.stdout, 3, where)
    inside = shell_functions.lines(done.stdout, "inside")
    if inside != [["0::/test.slice"]] * 2:
        raise ReadingError(where, "both of its shells in 0::/test.slice", f"{inside}: {done.stderr[-200:]}")
    began_s, ended_s = (
        parse_decimal(shell_functions.printed_word(done.stdout, word, where), where) for word in ("started", "ended")
    )
    # dd prints this for the second write if it was not killed.
    written = "256+0 records out" in done.stderr
    start, direct, loop = counts
    source = "/sys/fs/cgroup/test.slice/memory.events"
    return Evidence(
        claim=_kills(loop - direct),
        reason=f"oom_kill {start}, {direct}, {loop}: {loop - direct} kills through the loop device",
        measures=(
            Measure(name="oom_kill at start", value=start, unit="kills", source=source),
            Measure(name="oom_kill after tmpfs", value=direct, unit="kills", source=source),
            Measure(name="oom_kill after loop", value=loop, unit="kills", source=source),
            Measure(name="script", value=round(ended_s - began_s, 3), unit="s", source="the guest's clock"),
        ),
        controls=(
            Control(name="new cgroup", expected="oom_kill 0 at start", got=f"oom_kill {start}", holds=start == 0),
            Control(
                name="limit holds on tmpfs", expected="a kill", got=f"{direct - start} kills", holds=direct > start
            ),
            Control(
                name="written through the loop, or killed",
                expected="256 records written, or a kill",
                got=f"{'256 records' if written else 'not all records'}, {loop - direct} kills",
                holds=written or loop > direct,
            ),
        ),
    )


async def _gate(guest: Guest, point: Point) -> Evidence:
    del point
    kills: dict[str, int] = {}
    ends: dict[str, int] = {}
    for name, how, controller in (
        ("direct", "direct", "-io"),
        ("without", "/dev/loop0", "-io"),
        ("with", "/dev/loop1", "+io"),
    ):
        await guest.script('echo "$1" >/sys/fs/cgroup/cgroup.subtree_control', controller)
        done = await guest.script(_WRITE, f"gate-{name}", how, timeout_s=guest.deadlines.command_s * 2)
        where = f"guest {guest.name}: gate {name}"
        (kills[name],) = parse_oom_kills(done.stdout, 1, where)
        ends[name] = shell_functions.printed_number(done.stdout, "status", where)
    return Evidence(
        claim=_kills(kills["with"]),
        reason=f"through the loop device {kills['with']} kills with +io, {kills['without']} with -io",
        measures=tuple(
            Measure(
                name=f"oom_kill {label}",
                value=kills[name],
                unit="kills",
                source=f"/sys/fs/cgroup/gate-{name}/memory.events",
            )
            for name, label in (("with", "loop, +io"), ("without", "loop, -io"), ("direct", "tmpfs, -io"))
        ),
        controls=(
            Control(
                name="no charge without the io controller",
                expected="0 kills",
                got=f"{kills['without']} kills",
                holds=kills["without"] == 0,
            ),
            Control(
                name="limit holds on tmpfs",
                expected="a kill",
                got=f"{kills['direct']} kills",
                holds=kills["direct"] > 0,
            ),
            Control(
                name="written, or killed",
                expected="status 0 of each dd, or a kill",
                got=", ".join(f"{name}: status {ends[name]}, {kills[name]} kills" for name in kills),
                holds=all(ends[name] == 0 or kills[name] > 0 for name in kills),
            ),
        ),
    )


OOM_TMPFS = Scenario(
    name="oom-tmpfs",
    claim="Writing more than memory.max through a loop device on tmpfs is OOM-killed, as writing to tmpfs itself is",
    patches=(3, 4),
    predicted_base="oom_kill 0, 1, 1: the loop's pages are charged to root",
    predicted_patched="oom_kill 0, 1, 2 or more",
    source=COVER_LETTER,
    needs=COMMON_NEEDS,
    what="In a cgroup with memory.max 64M and no swap: 256M to a file on tmpfs, then 256M through a loop on a file "
    "on tmpfs",
    steps=_oom_tmpfs,
    expected_log=frozenset({Kind.OOM, Kind.IO_ERROR}),
)

GATE = Scenario(
    name="gate",
    claim="The memory of a loop's I/O is charged only where the io controller is enabled in the parent's "
    "cgroup.subtree_control",
    patches=(4,),
    predicted_base="no kill through the loop, with +io and with -io",
    predicted_patched="a kill through the loop with +io, none with -io",
    source="workers are found by the bio's blkcg css, which without the io controller is the root's "
    "(drivers/block/loop.c)",
    needs=COMMON_NEEDS,
    what="128M through a loop on tmpfs under a limit of 64M, with io taken from the parent's subtree_control, and "
    "with it",
    steps=_gate,
    expected_log=frozenset({Kind.OOM, Kind.IO_ERROR}),
)
