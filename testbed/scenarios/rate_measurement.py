"""Shell functions that measure rates of a cgroup in a guest, and parsers of their output."""

from __future__ import annotations

import itertools

from testbed import cgroupfs
from testbed.errors import ReadingError
from testbed.guest import shell_functions
from testbed.guest.shell_functions import ENTER
from testbed.units import MIB, parse_decimal, parse_whole

# rate CGROUP TARGET MIB AT_MIB NAME: reads TARGET in the cgroup, and prints `rate NAME MIB START END`. For bash.
RATE = f"""\
{ENTER}
cd /sys/fs/cgroup || exit 1
rate() {{
    local start=$EPOCHREALTIME
    (enter "$1" || exit 1
     exec dd "if=$2" of=/dev/null bs=64k "count=$(($3 * 16))" "skip=$(($4 * 16))" iflag=direct status=none) || exit 1
    echo "rate $5 $3 $start $EPOCHREALTIME"
}}
"""

# job NAME CGROUP TARGET SECONDS OPTION...: random reads by fio in a cgroup. iops NAME: prints the rate of a job, field
# 8 of fio's terse output.
JOBS = f"""\
{ENTER}
job() {{
    local name=$1 cgroup=$2 target=$3 time=$4
    shift 4
    (enter "$cgroup" || exit 1
     exec fio "--name=$name" "--filename=$target" --direct=1 --rw=randread "--runtime=$time" --time_based --thread \\
         --group_reporting --output-format=terse "--output=/tmp/$name" "$@") || exit 1
}}
iops() {{ cut -d';' -f8 "/tmp/$1" | sed "s/^/iops $1 /"; }}
"""


def parse_rates(output: str, names: tuple[str, ...], where: str) -> dict[str, float]:
    """Parse lines `rate NAME MIB START END` into bytes per second, by name.

    :raise ReadingError: a name has no line, or its clock stood still or went back.
    """
    found = {}
    for name, (mib, start, end) in shell_functions.named_values(output, "rate", names, where, values=3).items():
        took_s = parse_decimal(end, where) - parse_decimal(start, where)
        if took_s <= 0:
            raise ReadingError(where, f"{name} to end after {start}", end)
        found[name] = parse_whole(mib, where) * MIB / took_s
    return found


def parse_stalls(output: str, where: str) -> tuple[int, int, int]:
    """Parse four lines `stalled TOTAL` into three differences, in microseconds.

    These are how long the cgroup stalled on the buffered loop, on the direct-I/O loop, and on the file.

    :raise ReadingError: there are not four totals, or one is smaller than the one before.
    """
    found = shell_functions.lines(output, "stalled")
    if [len(words) for words in found] != [1] * 4:
        raise ReadingError(where, "four totals of `some`", str(found))
    totals = [parse_whole(words[0], where) for words in found]
    loop_us, dio_us, file_us = (cgroupfs.growth(*pair, where) for pair in itertools.pairwise(totals))
    return loop_us, dio_us, file_us


def parse_iops(output: str, names: tuple[str, ...], where: str) -> dict[str, float]:
    """Parse lines `iops NAME NUMBER` into requests per second, by name of the job.

    :raise ReadingError: a job has no line.
    """
    found = shell_functions.named_values(output, "iops", names, where)
    return {name: parse_decimal(number, f"{where}, {name}") for name, (number,) in found.items()}
