"""Nested charging (patch 2): allocations for another cgroup while a loop's worker charges the issuer's cgroup.

What a filesystem or a listener allocates then is charged to the right cgroup, and the worker continues to charge the
issuer afterwards.
"""

from __future__ import annotations

from dataclasses import replace

from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.guest.shell_functions import ENTER, printed_number
from testbed.scenarios.claims.read import READ_BYTES, read_command
from testbed.scenarios.controls import owned_pages, usual_read_controls
from testbed.scenarios.harness import FRESH, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, FIO, Need, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import (
    Claim,
    Control,
    Evidence,
    Gap,
    Measure,
    Part,
    Skipped,
    join_parts,
    pages_of,
    share_gap,
)
from testbed.units import MIB

# Each 64 KiB of the loop's second half gets a hole from the middle of a block to the middle of the next but one: the
# filesystem reads both blocks, and needs buffer heads to zero parts of them. The loop's worker charges the second block
# after it has allocated for the first.
_HOLES, _BLOCK = 256, 4096
_HEAD = 104  # bytes of a struct buffer_head on x86-64
# Arguments: a loop, offset and length of the first hole, distance of the holes in bytes, number of holes. 0x1277 is
# BLKDISCARD (include/uapi/linux/fs.h).
_PUNCH = """\
perl -e 'my ($path, $offset, $length, $step, $count) = @ARGV; open my $loop, "+<", $path or die "$!";
    for (0 .. $count - 1) { ioctl $loop, 0x1277, pack "QQ", $offset + $_ * $step, $length or die "$!" }'"""


def _punched(loop: str) -> str:
    return f"{_PUNCH} {loop} {16 * MIB + _BLOCK // 2} {2 * _BLOCK} {64 * 1024} {_HOLES}"


_WARM = f"{FRESH}\nperl -e 'exit'"


_PUNCHED_BYTES = 2 * _HOLES * _BLOCK


def judge_punched(*, pages: int, moved: int, slab: int, later: Part) -> Claim:
    """Judge the charge for the blocks at both ends of each hole, and for a read after them.

    `pages`: the page cache charged to the owner, at least both blocks of each hole and at most what the disk `moved`;
    `slab`: the slab charged to the owner, which includes the buffer heads, so that it has no upper bound. In bytes.
    `later`: the part of the claim for the disk's bytes that are read afterwards.
    """
    ahead = moved - _PUNCHED_BYTES
    gap = share_gap(pages, _PUNCHED_BYTES, least=1, ahead=ahead) if ahead >= 0 else Gap.UNCLEAR
    heads = _HOLES * _HEAD
    of_slab = Gap.CLOSED if slab >= heads else Gap.OPEN if slab < heads / 2 else Gap.UNCLEAR
    return join_parts(
        Part(what="the pages of punched blocks", gap=gap, times=pages / _PUNCHED_BYTES),
        Part(what="their buffer heads", gap=of_slab),
        replace(later, what="the disk's bytes read later"),
    )


async def _punch(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        before = len(guest.console.findings)
        punched = await harness.meter("owner", _punched(harness.loop), warm=_WARM)
        after = await harness.meter("owner", read_command(harness.loop))
        usual = await usual_read_controls(harness)
        warnings = [finding.text for finding in guest.console.findings[before:]]
        slab, pages, share = punched.memory("slab"), punched.memory("file"), harness.share(after, "rbytes")
        moved = harness.disk_moved(punched, "rbytes")
        judged = judge_punched(
            pages=pages, moved=moved, slab=slab, later=harness.part(after, "rbytes", asked=READ_BYTES)
        )
        if warnings:
            judged = Claim(gap=Gap.UNCLEAR, note="")
        return Evidence(
            claim=judged.gap,
            reason=f"of the punched blocks the owner has {pages / _PUNCHED_BYTES:.1%} of the pages and {slab} bytes of "
            f"slab; of the disk's bytes read after them {share:.1%}{judged.note}"
            + (f"; the kernel said: {warnings[0]}" if warnings else ""),
            measures=(
                Measure(name="pages of punched blocks", value=pages, unit="bytes", source="memory.stat file of owner"),
                Measure(name="buffer heads and the like", value=slab, unit="bytes", source="memory.stat slab of owner"),
                Measure(
                    name="charged reads after",
                    value=after.io(harness.device, "rbytes"),
                    unit="bytes",
                    source="io.stat rbytes of owner",
                ),
            ),
            controls=(
                Control(
                    name="both ends of each hole were read",
                    expected=f"{_PUNCHED_BYTES} bytes",
                    got=f"{moved}",
                    holds=moved >= _PUNCHED_BYTES,
                ),
                *usual.controls,
            ),
            balances=(harness.balance(after, "rbytes"), *usual.balances),
        )


# $1: loop. $2: backing file. $3: inotify or fanotify. A listener that never reads its queue watches the backing file,
# while a cgroup uses the loop. Equal events in a row are merged, so that reads and writes are mixed. One program does
# all of them: hundreds of short programs would leave so much translated code in their pages that QEMU 7.2 takes a
# minute when the pages are used again (seen as a soft lockup on 5.10 and 6.1).
_LISTEN = (
    ENTER
    + """\
cd /sys/fs/cgroup && mkdir listener owner || exit 1
WARM
slab() { sed -n 's/^slab //p' listener/memory.stat; }
cat >/tmp/listen.pl <<'PERL'
my ($how, $file) = @ARGV;
my ($IN, $ADD, $FAN, $MARK, $AT_FDCWD, $PATH) = (294, 254, 300, 301, -100, "$file\\0");
my $fd;
if ($how eq 'inotify') {
    $fd = syscall($IN, 0);
    syscall($ADD, $fd, $PATH, 3) >= 0 or die "inotify_add_watch: $!";    # IN_ACCESS | IN_MODIFY
} else {
    $fd = syscall($FAN, 0x10, 0);                                         # FAN_UNLIMITED_QUEUE
    syscall($MARK, $fd, 1, 3, $AT_FDCWD, $PATH) == 0 or die "fanotify_mark: $!";    # FAN_ACCESS | FAN_MODIFY
}
$fd >= 0 or die "$how: $!";
open my $queue, '<&=', $fd or die "$how: $!";
$SIG{TERM} = sub {
    my $bytes = pack 'i', 0;
    ioctl $queue, 0x541B, $bytes or die "FIONREAD: $!";
    print 'queued ', unpack('i', $bytes), "\\n";
    exit;
};
$| = 1;
print "listening\\n";
sleep 1000;
PERL
(enter listener || exit 1; exec setsid perl /tmp/listen.pl "$3" "$2" </dev/null >/tmp/listened 2>&1) &
echo $! >/tmp/listener
for wait in $(seq 100); do grep -q listening /tmp/listened && break; sleep 0.1; done
grep -q listening /tmp/listened || exit 1
SURVEY
echo "before $(slab)"
(enter owner || exit 1
 exec fio --name=owner --filename="$1" --direct=1 --rw=randrw --bs=4k --size=8M --number_ios=800 --thread \\
     --output=/dev/null) || exit 1
echo "after $(slab)"
""".replace("WARM", FRESH).replace("SURVEY", survey.TAKE)
)
_STOP_LISTENER = """\
kill "$(cat /tmp/listener)" || exit 1
for wait in $(seq 100); do grep -q queued /tmp/listened && break; sleep 0.1; done
cat /tmp/listened
"""


async def _listen(guest: Guest, point: Point) -> Evidence | Skipped:
    async with open_harness(guest, point) as harness:
        done = await guest.script(
            _LISTEN, harness.loop, harness.file, point.variant, timeout_s=guest.deadlines.command_s * 3
        )
        # The owner continues: this read is charged to it, with an event after each page of a request.
        charge = await harness.meter(
            "owner", f"dd if={harness.loop} of=/dev/null bs=1M skip=12 count=16 iflag=direct status=none"
        )
        resident = await harness.resident_bytes()
        printed = done.stdout + (await guest.script(_STOP_LISTENER)).stdout
        where = f"guest {guest.name}: the listener"
        before, after, queued = (printed_number(printed, name, where) for name in ("before", "after", "queued"))
        if queued == 0:
            return Skipped(why="here a loop's I/O sends no events for its backing file")
        usual = await usual_read_controls(harness)
    share, pages = harness.share(charge, "rbytes"), charge.memory("file")
    judged = join_parts(
        harness.part(charge, "rbytes", asked=READ_BYTES), pages_of("the page cache", pages, resident, READ_BYTES)
    )
    grown = after - before  # negative if the kernel has freed some
    return Evidence(
        claim=judged.gap,
        reason=f"{queued} bytes of events, {grown} of the listener's slab; then the owner has {share:.1%} of the "
        "disk's "
        f"bytes, {pages / MIB:.1f} MiB of pages{judged.note}",
        measures=(
            Measure(name="listener's slab", value=grown, unit="bytes", source="memory.stat slab of listener"),
            Measure(
                name="charged reads after",
                value=charge.io(harness.device, "rbytes"),
                unit="bytes",
                source="io.stat rbytes of owner",
            ),
        ),
        controls=(*usual.controls,),
        balances=(
            harness.balance(charge, "rbytes"),
            *usual.balances,
            *owned_pages(judged.gap, "owner", pages, resident),
        ),
    )


PUNCH = Scenario(
    name="punch-hole",
    claim="A discard that makes the filesystem allocate buffer heads is charged to its issuer, which goes on being "
    "charged",
    patches=(2, 4),
    predicted_base="neither the punched blocks' pages nor later reads are the owner's",
    predicted_patched="pages and slab of the punched blocks, and later reads, are the owner's; the kernel warns of "
    "nothing",
    source="mm: support nesting memalloc_use_memcg() (patch 2), in fs/buffer.c",
    what="256 discards from the middle of a block to that of the next but one, then 16M read with O_DIRECT from the "
    "loop",
    needs=COMMON_NEEDS,
    points=on_each_disk("ext4"),
    steps=_punch,
)

LISTENERS = Scenario(
    name="listener",
    claim="inotify and fanotify events of a loop's file are charged to the listener, and the issuer goes on being "
    "charged",
    patches=(2, 4),
    predicted_base="events come, and nobody pays for the reads among them",
    predicted_patched="events come, the listener pays for them, and the owner for the reads among them",
    source="mm: support nesting memalloc_use_memcg() (patch 2), in fs/notify",
    what="A listener that never reads its queue watches the backing file; 800 reads and writes of 4K through the loop, "
    "then 16M read while it still watches",
    needs=(
        *COMMON_NEEDS,
        FIO,
        Need(what="CONFIG_FANOTIFY, CONFIG_INOTIFY_USER", test="test -d /proc/sys/fs/inotify"),
    ),
    found="6.12 and 7.2 send no events for what a loop does to its file; 5.10 shows the listener's slab in steps of "
    "128K, "
    "and since 5.13 fanotify merges all events of one file, so that slab is reported and not judged",
    points=on_each_disk("ext4", variants=("inotify", "fanotify")),
    steps=_listen,
)
