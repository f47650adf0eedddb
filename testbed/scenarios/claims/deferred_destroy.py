"""Deferred destruction (patch 1): a removed cgroup remains until its worker is freed, 60 s after its last request."""

from __future__ import annotations

from testbed.errors import ReadingError
from testbed.guest import shell_functions
from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.guest.shell_functions import ENTER
from testbed.host.admission import Cores
from testbed.scenarios.harness import FRESH, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure
from testbed.units import parse_whole

# The device's timer is armed when a worker first becomes idle. It frees only workers that have been idle for 60 s when
# it fires; one that ran again a moment later waits for the next time (drivers/block/loop.c: loop_set_timer,
# loop_free_idle_workers). On 6.1 a cgroup whose last eight requests came at once was gone 61 s after its removal, one
# whose requests came over 5 s after 117 s. A timer of a minute may be 2 s late: so wait for two periods, and some more
# for a slow guest.
_WATCHED_S = 2 * (60 + 2) + 16
# dying: prints how many removed cgroups below the current one still exist; fails if the kernel does not say. still:
# waits until there are none, because one could not tell several apart.
DYING = """\
dying() {
    local count
    count=$(sed -n 's/^nr_dying_descendants //p' cgroup.stat)
    case $count in '' | *[!0-9]*) echo "nr_dying_descendants: expected a number, got '$count'" >&2; return 1 ;; esac
    echo "$count"
}
still() {
    local wait count
    for wait in $(seq 100); do
        count=$(dying) || return 1
        [ "$count" != 0 ] || return 0
        sleep 0.3
    done
    echo "$count removed cgroups are still there" >&2
    return 1
}
"""
# $1: loop. $2: its file. $3: `attached`, or `detached`: the loop is detached after the cgroup is removed. The loop does
# direct I/O, because buffered I/O pins a cgroup on kernels before the series, too, by its writeback. Prints `read
# BYTES` for each device that the cgroup has read from, then `dying SECONDS COUNT` until the count is 0 or the time is
# over.
_STEPS = f"""\
{ENTER}
{DYING}
cd /sys/fs/cgroup && still && mkdir gone || exit 1
losetup --direct-io=on "$1"
{FRESH}
{survey.TAKE}
(enter gone || exit 1; exec dd "if=$1" of=/dev/null bs=1M count=8 iflag=direct status=none) || exit 1
sed -n "s/.* rbytes=\\([0-9]*\\).*/read \\1/p" gone/io.stat
rmdir gone || exit 1
SECONDS=0
echo 3 >/proc/sys/vm/drop_caches
[ "$3" = attached ] || losetup -d "$1" || exit 1
last=
while [ $SECONDS -lt {_WATCHED_S} ]; do
    now=$(dying) || exit 1
    [ "$now" = "$last" ] || echo "dying $SECONDS $now"
    last=$now
    [ $now = 0 ] && [ $SECONDS -ge 5 ] && break
    sleep 0.5
done
[ "$3" = attached ] || losetup "$1" "$2"
"""
# The worker is freed 60 s after its last request at the earliest (LOOP_IDLE_WORKER_TIMEOUT).
_SOON_S, _LEAST_S = 10, 30


def parse_dying(output: str, where: str) -> float | None:
    """Parse the seconds until no removed cgroup was left, or None if some were left at the end.

    :raise ReadingError: the output has no valid line `dying SECONDS COUNT`.
    """
    found = shell_functions.lines(output, "dying")
    if not found or len(found[-1]) != 2:
        raise ReadingError(where, "`dying SECONDS COUNT`", output[-120:])
    seconds, count = (parse_whole(word, where) for word in found[-1])
    return None if count else float(seconds)


def judge(seconds: float | None) -> Gap:
    """Judge how long a removed cgroup remained. CLOSED: for the idle time of its worker. OPEN: it was gone at once."""
    if seconds is None:
        return Gap.UNCLEAR
    if seconds <= _SOON_S:
        return Gap.OPEN
    return Gap.CLOSED if seconds >= _LEAST_S else Gap.UNCLEAR


async def _steps(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        limit = _WATCHED_S + 30 + guest.deadlines.command_s
        done = await guest.script(
            _STEPS, harness.loop, harness.file, point.variant, interpreter="bash", timeout_s=limit
        )
    where = f"guest {guest.name}: counters of the removed cgroup"
    seconds = parse_dying(done.stdout, where)
    bytes_read = sum(
        parse_whole(words[0] if words else "", where) for words in shell_functions.lines(done.stdout, "read")
    )
    lasted = _WATCHED_S if seconds is None else seconds
    return Evidence(
        claim=judge(seconds),
        reason=f"the removed cgroup was {'still there' if seconds is None else 'gone'} after {lasted:.0f} s",
        measures=(Measure(name="gone after", value=lasted, unit="s", source="nr_dying_descendants of cgroup.stat"),),
        controls=(Control(name="it did I/O", expected="bytes of its own", got=f"{bytes_read}", holds=bytes_read > 0),),
    )


DEFERRED_DESTROY = Scenario(
    name="deferred-destroy",
    claim="A removed cgroup that used a loop goes when its idle worker does, a minute after its last request, "
    "attached or detached",
    patches=(1,),
    predicted_base="it is gone at once: there is no worker of its own",
    predicted_patched="it stays for about 60 s, or 120 s where the timer fires just before those are over, and then "
    "goes; "
    "detaching the loop does not hasten it",
    source="loop: use worker per cgroup instead of kworker (patch 1): workers are destroyed when idle for 60 s",
    what="8M read by a cgroup through a direct-I/O loop, the cgroup removed, its count of dying descendants watched",
    needs=COMMON_NEEDS,
    points=on_each_disk("ext4", variants=("attached", "detached")),
    steps=_steps,
    cores=Cores.IDLE,
)
