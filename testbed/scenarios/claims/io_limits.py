"""io.max: a cgroup's I/O through a buffered loop obeys the limit, which it exceeded before the series.

These scenarios measure time, so that no other guest runs beside them. They judge ratios that do not depend on the speed
of the machine: a rate divided by a limit far below what any host reaches, or the rate of one cgroup by that of another.
"""

from __future__ import annotations

import math

from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.host.admission import Cores
from testbed.scenarios.harness import FRESH, open_harness
from testbed.scenarios.rate_measurement import RATE, parse_rates, parse_stalls
from testbed.scenarios.scenario import COMMON_NEEDS, Need, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure
from testbed.units import MIB

_LIMIT_BYTES = MIB
_HELD_FROM = 0.6
_IO_MAX = f"""\
{RATE}
mkdir limited free && echo "$3 rbps={_LIMIT_BYTES}" >limited/io.max || exit 1
{FRESH}
{survey.TAKE}
stalled() {{ sed -n 's/^some.*total=/stalled /p' limited/io.pressure; }}
stalled
rate limited "$1" 3 0 loop
stalled
rate free "$1" 8 4 free
losetup --direct-io=on "$1" && rate limited "$1" 1 16 dio
stalled
rate limited "$2" 1 20 file
stalled
losetup --direct-io=off "$1"
"""


def judge_limit(ratio: float) -> Gap:
    """Judge a rate divided by its limit: near 1, or far above. dd and the time window of the limit explain the rest.

    0.80 to 0.97 were measured. A cgroup that is charged twice gets half of the limit, and so does a machine that stood
    still for half of the time; both are unclear.
    """
    if _HELD_FROM <= ratio <= 1.3:
        return Gap.CLOSED
    return Gap.OPEN if math.isfinite(ratio) and ratio >= 2 else Gap.UNCLEAR


def limit_control(name: str, rate: float, limit: float) -> Control:
    return Control(
        name=name,
        expected=f"{_HELD_FROM} to 1.3 times the limit of {limit / MIB:.1f} MiB/s",
        got=f"{rate / MIB:.2f} MiB/s",
        holds=judge_limit(rate / limit) is Gap.CLOSED,
    )


def free_control(rate: float, limit: float) -> Control:
    return Control(
        name="a cgroup without the limit",
        expected="at least twice the limit",
        got=f"{rate / MIB:.2f} MiB/s",
        holds=judge_limit(rate / limit) is Gap.OPEN,
    )


async def _io_max_output(guest: Guest, point: Point) -> tuple[str, dict[str, float]]:
    """Run the script, and return its output and the rates in it."""
    async with open_harness(guest, point) as harness:
        done = await guest.script(
            _IO_MAX,
            harness.loop,
            harness.file,
            harness.device,
            interpreter="bash",
            timeout_s=guest.deadlines.command_s * 2,
        )
    return done.stdout, parse_rates(
        done.stdout, ("loop", "free", "dio", "file"), f"guest {guest.name}: reads under io.max"
    )


async def _io_max(guest: Guest, point: Point) -> Evidence:
    _, rates = await _io_max_output(guest, point)
    return Evidence(
        claim=judge_limit(rates["loop"] / _LIMIT_BYTES),
        reason=f"{rates['loop'] / MIB:.2f} MiB/s through the loop under a limit of {_LIMIT_BYTES / MIB:.0f} MiB/s",
        measures=(
            Measure(
                name="rate",
                value=round(rates["loop"]),
                unit="bytes/s",
                source="3M by dd through the loop, the guest's clock",
            ),
        ),
        controls=(
            limit_control("direct-I/O loop", rates["dio"], _LIMIT_BYTES),
            limit_control("file itself, O_DIRECT", rates["file"], _LIMIT_BYTES),
            free_control(rates["free"], _LIMIT_BYTES),
        ),
    )


def judge_stall(loop_s: float, file_s: float) -> Gap:
    """Judge the stall time per MiB through the loop, divided by that on the file itself, which every kernel limits.

    Kernels account differently for the same stall; therefore the file is the reference. With the limit, one MiB takes
    one second; a much longer stall has another cause.
    """
    if file_s <= 0 or loop_s < 0 or loop_s > _MOST_STALL_S:
        return Gap.UNCLEAR
    share = loop_s / file_s
    if share >= 0.5:
        return Gap.CLOSED
    return Gap.OPEN if share <= 0.1 else Gap.UNCLEAR


_MOST_STALL_S = 1.5


async def _pressure(guest: Guest, point: Point) -> Evidence:
    output, rates = await _io_max_output(guest, point)
    loop_us, _, file_us = parse_stalls(output, f"guest {guest.name}: io.pressure of the limited cgroup")
    loop_s, file_s = loop_us / 3e6, file_us / 1e6
    return Evidence(
        claim=judge_stall(loop_s, file_s),
        reason=f"stalled {loop_s:.2f} s for each MiB through the loop, {file_s:.2f} s for one of the file itself",
        measures=(
            Measure(
                name="stalled, loop",
                value=round(loop_s, 3),
                unit="s/MiB",
                source="io.pressure of the cgroup, some total",
            ),
            Measure(name="stalled, file", value=round(file_s, 3), unit="s/MiB", source="the same"),
        ),
        controls=(
            Control(
                name="the limit shows as pressure on the file itself",
                expected="at least 0.2 s for a MiB at 1 MiB/s",
                got=f"{file_s:.2f} s",
                holds=file_s >= 0.2,
            ),
            limit_control("file itself, O_DIRECT", rates["file"], _LIMIT_BYTES),
            free_control(rates["free"], _LIMIT_BYTES),
        ),
    )


_BUFFERED = on_each_disk("ext4")
_THROTTLE_NEED = Need(
    what="CONFIG_BLK_DEV_THROTTLING", test="mkdir -p /sys/fs/cgroup/probe && test -e /sys/fs/cgroup/probe/io.max"
)

IO_MAX = Scenario(
    name="io-max",
    claim="io.max holds a cgroup's reads through a buffered loop",
    patches=(4,),
    predicted_base="the loop runs past the limit, at several times its rate",
    predicted_patched="the limit's rate",
    source='cover letter: "a loop device allows a cgroup to bypass its limits"',
    what="rbps of 1M on the disk: 3M read with O_DIRECT from the loop, 1M through a direct-I/O loop and from the file; "
    "8M by a free cgroup",
    needs=(*COMMON_NEEDS, _THROTTLE_NEED),
    points=_BUFFERED,
    steps=_io_max,
    cores=Cores.ALONE,
    cpus=2,
)

PRESSURE = Scenario(
    name="io-pressure",
    claim="A cgroup that is held by io.max through a buffered loop shows it as I/O pressure",
    patches=(4,),
    predicted_base="hardly any pressure: nothing holds it",
    predicted_patched="it stalls for most of the time that the limit makes of what it reads",
    source="loop: charge i/o to mem and blk cg (patch 4); PSI (Documentation/accounting/psi.rst)",
    what="io-max's steps; the growth of io.pressure for each MiB through the loop, against that of the file itself "
    "under "
    "the same limit",
    needs=(*COMMON_NEEDS, _THROTTLE_NEED, Need(what="CONFIG_PSI", test="test -e /proc/pressure/io")),
    points=_BUFFERED,
    steps=_pressure,
    cores=Cores.ALONE,
    cpus=2,
)
