"""Counters of cgroups in the API."""

import pytest

from testbed.api import cgroup
from testbed.api.cgroup import Counters
from testbed.errors import ReadingError, UsageError

FILES = {
    "io.stat": (
        "254:32 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"
        "7:9 rbytes=1 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"
    ),
    "memory.stat": "anon 10\nfile 20\n",
    "memory.events": "oom_kill 1\n",
    "memory.current": "77\n",
}


def script_output(files: dict[str, str], *notes: str) -> str:
    """Make the output of the script that reads a cgroup's counters."""
    texts = "".join(
        f"M file /sys/fs/cgroup/a/b/{name}\n{text}\nM whole /sys/fs/cgroup/a/b/{name}\n" for name, text in files.items()
    )
    return texts + "".join(f"M note {note}\n" for note in notes) + "M finish\n"


def test_counters_are_by_the_names_of_the_topology_and_can_be_subtracted() -> None:
    counters = cgroup.parse("a/b", script_output(FILES, "data 254:32", "l0 7:0"), "M", "g0")
    assert (
        counters.of("data", "rbytes") == 4096 and counters.of("7:9", "rios") == 1 and counters.of("l0", "rbytes") == 0
    )
    assert counters.memory["file"] == 20 and counters.events == {"oom_kill": 1} and counters.usage == {"current": 77}
    grown = counters - Counters(io={"data": {"rbytes": 96}}, memory={"file": 5}, events={"oom_kill": 1})
    assert (grown.of("data", "rbytes"), grown.memory["file"], grown.events["oom_kill"]) == (4000, 15, 0)
    assert (Counters(memory={"file": 1}) - Counters(memory={"file": 20})).memory == {"file": -19}, (
        "what there is now may become less"
    )


def test_a_counter_that_is_not_there_is_no_zero() -> None:
    counters = cgroup.parse("a/b", script_output(FILES, "data 254:32", "l0 7:0"), "M", "g0")
    with pytest.raises(UsageError, match="dta: expected MAJ:MIN, or one of the devices that are there: data, l0"):
        counters.of("dta", "rbytes")
    with pytest.raises(UsageError, match=r"rbyte: expected one of io\.stat's counters, which are rbytes, wbytes, "):
        (counters - Counters()).of("data", "rbyte")
    off = cgroup.parse(
        "a/b", script_output({name: text for name, text in FILES.items() if name != "io.stat"}), "M", "g0"
    )
    for counted in (off, off - off, counters - off):
        with pytest.raises(ReadingError, match="where the io controller is on"):
            counted.of("data", "rbytes")


@pytest.mark.parametrize(
    "after",
    [
        Counters(events={"oom_kill": 1}),  # the device is gone
        Counters(io={"data": {"rbytes": 4095}}, events={"oom_kill": 1}),
        Counters(io={"data": {"rbytes": 4096}}, events={"oom_kill": 0}),
        Counters(io={"data": {"rbytes": 4096}}),
    ],
)
def test_a_counter_that_shrank_or_went_away_is_no_growth(after: Counters) -> None:
    before = Counters(io={"data": {"rbytes": 4096}}, events={"oom_kill": 1})
    with pytest.raises(ReadingError, match="as before"):
        after - before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            script_output(FILES | {"memory.events": "oom_kill \u00b2\n"}),
            r"g0: .*/a/b/memory.events, line 1: expected a whole number",
        ),
        (script_output(FILES | {"io.stat": FILES["io.stat"][:-20]}), r"io.stat: expected a line's end"),
        (script_output(FILES).removesuffix("M finish\n"), "expected what its script prints at the end"),
        (
            script_output(FILES).replace("whole /sys/fs/cgroup/a/b/io.stat", "unread /sys/fs/cgroup/a/b/io.stat"),
            "io.stat: expected to read it",
        ),
        ("", "expected what its script prints at the end"),
    ],
)
def test_counters_that_were_not_read_are_an_error(text: str, why: str) -> None:
    with pytest.raises(ReadingError, match=why):
        cgroup.parse("a/b", text, "M", "g0")
