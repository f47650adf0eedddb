"""Parsing the output of the scenarios' scripts, recorded on real guests."""

from collections.abc import Callable

import pytest

from testbed.errors import ReadingError
from testbed.scenarios import rate_measurement
from testbed.scenarios.claims import (
    deferred_destroy,
    swap_in,
    tmpfs_oom,
)
from testbed.scenarios.verdict import Gap
from testbed.units import MIB

G = Gap


ALIVE = """\
stage written 100663296 0
stage squeezed 6299648 94363648
stage back 100663296 253952
stage reader 0 0
stage direct 33554432 0
"""


REMOVED = (
    "stage written 100663296 0\nstage squeezed 5128192 95535104\nstage reader 86327296 0\nstage direct 33554432 0\n"
)


BEFORE = "stage written 0 0\nstage squeezed 0 0\nstage back 0 0\nstage reader 0 0\nstage direct 33554432 0\n"


def test_rates_are_parsed_by_name() -> None:
    said = "rate loop 4 100.000000 104.000000\nstalled 12\nrate dio 2 1.5 2.5\n"
    assert rate_measurement.parse_rates(said, ("loop", "dio"), "g0") == {"loop": MIB, "dio": 2 * MIB}
    assert rate_measurement.parse_iops("iops a-alone 107.6\niops a-beside 1.3\n", ("a-alone",), "g0") == {
        "a-alone": 107.6,
        "a-beside": 1.3,
    }
    assert rate_measurement.parse_stalls("stalled 0\nstalled 5\nstalled 5\nstalled 9\n", "g0") == (5, 0, 4)


@pytest.mark.parametrize(
    "read",
    [
        lambda: rate_measurement.parse_rates("rate loop 4 100.0 104.0\n", ("loop", "dio"), "g0"),
        lambda: rate_measurement.parse_rates("rate loop 4 100.0 100.0\n", ("loop",), "g0"),
        lambda: rate_measurement.parse_rates("rate loop 4 104.0 100.0\n", ("loop",), "g0"),
        lambda: rate_measurement.parse_rates("rate loop 4 x y\n", ("loop",), "g0"),
        lambda: rate_measurement.parse_rates("rate loop 4 1.0 2.0\nrate loop 4 1.0 3.0\n", ("loop",), "g0"),
        lambda: rate_measurement.parse_iops("iops a \n", ("a",), "g0"),
        lambda: rate_measurement.parse_iops("iops a 1.2.3\n", ("a",), "g0"),
        lambda: rate_measurement.parse_iops(f"iops a {'9' * 5000}\n", ("a",), "g0"),
        lambda: rate_measurement.parse_stalls("stalled 0\nstalled 5\nstalled 5\n", "g0"),
        lambda: rate_measurement.parse_stalls("stalled 0\nstalled 5\nstalled 4\nstalled 9\n", "g0"),
        lambda: swap_in.parse_stages(BEFORE.replace("stage reader", "reader"), "alive", "g0"),
        lambda: swap_in.parse_stages(BEFORE.replace("stage reader 0 0", "stage reader 0"), "alive", "g0"),
        lambda: deferred_destroy.parse_dying("", "g0"),
        lambda: deferred_destroy.parse_dying("dying 4 -1\n", "g0"),
        lambda: tmpfs_oom.parse_oom_kills("oom_kill 0\noom_kill 1\n", 3, "g0"),
        lambda: tmpfs_oom.parse_oom_kills("oom_kill 0\noom_kill 1\noom_kill 0\n", 3, "g0"),
        lambda: tmpfs_oom.parse_oom_kills("oom_kill 0\noom_kill \u00b2\noom_kill 3\n", 3, "g0"),
    ],
)
def test_unexpected_script_output_is_an_error(read: Callable[[], object]) -> None:
    with pytest.raises(ReadingError, match=r"^g0.*: expected .*, got "):
        read()


# Output of 6.1 and 5.10.
@pytest.mark.parametrize(
    ("said", "gap"),
    [
        (ALIVE, G.CLOSED),
        (REMOVED, G.CLOSED),
        (BEFORE, G.OPEN),
        (
            ALIVE.replace("back 100663296", "back 6299648"),
            G.PARTIAL,
        ),  # what was swapped out is nobody's when it comes back
        (ALIVE.replace("back 100663296", "back 201326592"), G.EXCESS),
        (ALIVE.replace("written 100663296", "written 201326592"), G.EXCESS),
        (BEFORE.replace("reader 0", "reader 90000000"), G.UNCLEAR),
        (ALIVE.replace("reader 0", "reader 90000000"), G.UNCLEAR),
        (REMOVED.replace("86327296", "0"), G.PARTIAL),
        (REMOVED.replace("86327296", "40000000"), G.UNCLEAR),
        (REMOVED.replace("86327296", "201326592"), G.EXCESS),
        (ALIVE.replace("94363648", "0"), G.UNCLEAR),
    ],
)
def test_swapped_pages_must_come_back_to_their_owner(said: str, gap: Gap) -> None:
    assert swap_in.judge(swap_in.parse_stages(said, "alive" if "back" in said else "removed", "g0")).gap is gap


def test_the_time_until_a_removed_cgroup_is_gone_is_parsed() -> None:
    assert deferred_destroy.parse_dying("read 8388608\ndying 0 1\ndying 62 0\n", "g0") == 62
    assert deferred_destroy.parse_dying("dying 0 0\n", "g0") == 0
    assert deferred_destroy.parse_dying("dying 0 1\n", "g0") is None
