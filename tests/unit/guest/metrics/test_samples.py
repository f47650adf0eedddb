"""Counters of cgroups as the agent sends them, the samples that are written, and their plots."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testbed import cgroupfs
from testbed.errors import GuestLost, ReadingError
from testbed.guest.metrics import recorder
from testbed.guest.metrics.disk_sampler import BOUNDARIES_NS
from testbed.host import paths
from testbed.report import plots as series
from testbed.report.plots import Line
from testbed.units import MIB

MOVED = "rbytes=5 wbytes=6 rios=7 wios=8 dbytes=0 dios=0"


def test_a_groups_counters_are_read_by_name_and_device() -> None:
    name = b"a b/c".hex()
    lines = (
        (
            f"group name={name} current=5 anon=1 file=2 shmem=3 slab=4 "
            "oom_kill=6 memory_stall=7 io_stall=8 io=7:0,1,2,3,4;254:16,9,8,7,6"
        ),
        f"gone name={b'old'.hex()}",
        "frozen",
    )
    assert cgroupfs.parse_group_counts(lines) == {
        "a b/c": {
            **{
                "memory": 5,
                "anon": 1,
                "file": 2,
                "shmem": 3,
                "slab": 4,
                "oom_kill": 6,
                "memory_stall_us": 7,
                "io_stall_us": 8,
            },
            "io": {
                "7:0": {"rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4},
                "254:16": {"rbytes": 9, "wbytes": 8, "rios": 7, "wios": 6},
            },
        },
        "old": None,
    }


@pytest.mark.parametrize(
    "line",
    [
        "",
        "group",
        "group name=zz current=1",
        "group name=61 current=\u00b2",
        "group name=61 io=7:0,1,2,3",
        f"group name=61 anon={'9' * 5000}",
        "x",
    ],
)
def test_a_line_of_another_form_is_an_error(line: str) -> None:
    with pytest.raises(ReadingError, match=r"^agent: line 2 of its counters"):
        cgroupfs.parse_group_counts(["gone name=61", line])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"254:0 {MOVED}\n7:0 \n259:0 {MOVED} cost.usage=3\n", "254:0,5,6,7,8;259:0,5,6,7,8"),
        (f"7:1 7:0 254:0 {MOVED}\n7:3 7:2 ", "254:0,5,6,7,8"),
        ("254:0 cost.vrate=1 cost.usage=2 cost.wait=3 cost.indebt=4\n", ""),
        ("", ""),
    ],
)
def test_the_agent_reports_the_io_of_each_device(text: str, said: str) -> None:
    agent = (paths.shipped("images") / "guest" / "testbed-agent").read_text(encoding="utf-8")
    function = re.search(r"^sub moved \{$.*?^\}$", agent, re.MULTILINE | re.DOTALL)
    assert function is not None
    done = subprocess.run(
        ["perl", "-we", f"{function[0]}\nprint moved($ARGV[0]);", "--", text], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (said, "")
    assert len(cgroupfs.parse_group_counts([f"group name=61 io={said}"])["a"]["io"]) == said.count(":")  # type: ignore[index]  # it is there


async def test_numbers_that_are_none_end_the_samples_and_what_they_are_of(tmp_path: Path) -> None:
    async def sample() -> dict[str, Any]:
        raise ReadingError("agent", "a number", "x")

    with pytest.raises(ReadingError):
        async with recorder.record_samples(sample, 3600, tmp_path / "log"):
            pass


async def test_samples_come_at_once_in_between_and_at_the_end(tmp_path: Path) -> None:
    taken = asyncio.Event()
    count = 0

    async def sample() -> dict[str, Any]:
        nonlocal count
        count += 1
        taken.set()
        return {"count": count}

    async with recorder.record_samples(sample, 3600, tmp_path / "log"):
        await taken.wait()
    assert [json.loads(line)["count"] for line in (tmp_path / "log").read_text().splitlines()] == [1, 2]


async def test_a_guest_that_is_lost_keeps_its_samples_and_ends_them(tmp_path: Path) -> None:
    count = 0

    async def sample() -> dict[str, Any]:
        nonlocal count
        count += 1
        if count == 3:
            raise GuestLost("g0", "ready", "panic")
        return {"count": count}

    async with recorder.record_samples(sample, 0, tmp_path / "log"):
        while count < 3:
            await asyncio.sleep(0)
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_what_takes_long_is_taken_less_often_and_nothing_is_made_up_for() -> None:
    assert recorder.next_due(10.0, 10.01, 0.01, 0.5, 0.04) == 10.5
    assert recorder.next_due(10.0, 10.1, 0.1, 0.5, 0.04) == pytest.approx(12.5)
    assert recorder.next_due(10.0, 13.0, 0.01, 0.5, 1.0) == 13.0


def write(folder: Path, name: str, *lines: dict[str, Any] | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def disk(at: float, read: int, requests: int, latency: list[int] | None = None) -> dict[str, Any]:
    way = {"bytes": read, "requests": requests, **({"latency": latency} if latency else {})}
    return {"guest_s": at, "disks": {"data": {"rd": way, "wr": {"bytes": 0, "requests": 0}}}}


def bins(**counts: int) -> list[int]:
    found = [0] * (len(BOUNDARIES_NS) + 1)
    for at, count in counts.items():
        found[int(at.removeprefix("b"))] = count
    return found


def test_rates_are_differences_and_survive_a_new_beginning_and_broken_lines(tmp_path: Path) -> None:
    write(
        tmp_path / "g",
        "samples.jsonl",
        disk(10.0, 0, 0, bins()),
        disk(12.0, 4 * MIB, 20, bins(b0=20)),
        "{half",
        "[]",
        '{"guest_s": "x", "disks": {}}',
        disk(13.0, MIB, 5, bins(b1=5)),
    )
    recorded = series.read_recording(tmp_path, "g", 100)
    plots = {plot.title: plot for plot in recorded.plots}
    assert recorded.begin_s == 10.0
    assert plots["Disk bandwidth"].x == [0, 2, 3]
    assert plots["Disk bandwidth"].lines == [Line(name="data read", dash="", y=[None, 2, 1])]
    assert plots["Disk requests"].lines[0].y == [None, 10, 5]
    assert [line.name for line in plots["Disk latency"].lines] == ["data read p50", "data read p99"]


def test_percentiles_lie_in_their_bin() -> None:
    assert series.percentile_ms(bins(), 0.5) is None
    assert series.percentile_ms(bins(b0=100), 0.5) == pytest.approx(0.025)
    slow = series.percentile_ms(bins(b0=90, b6=10), 0.99)
    assert slow is not None and BOUNDARIES_NS[5] / 1e6 < slow <= BOUNDARIES_NS[6] / 1e6
    assert series.percentile_ms([0] * len(BOUNDARIES_NS) + [1], 0.5) == pytest.approx(30_000)


def group(memory: int, kills: int, read: int | None) -> dict[str, Any]:
    io = {} if read is None else {"data": {"rbytes": read, "wbytes": 0, "rios": 1, "wios": 0}}
    return {"file": memory, "oom_kill": kills, "io": io, "io_stall_us": 0}


def test_groups_that_say_nothing_are_as_they_were_and_kills_are_marks(tmp_path: Path) -> None:
    write(
        tmp_path / "g",
        "cgroups.jsonl",
        {"guest_s": 5.0, "groups": {}},
        {"guest_s": 6.0, "groups": {"a": group(8 * MIB, 0, MIB)}},
        {"guest_s": 7.0, "groups": {"b": group(0, 1, None)}},
        {"guest_s": 8.0, "groups": {"a": None}},
    )
    write(
        tmp_path / "g",
        "timeline.jsonl",
        {"guest_s": 6.5, "act": 0, "do": "hang data 1s"},
        {"guest_s": 7.5, "act": 1, "error": "no", "do": "x"},
    )
    recorded = series.read_recording(tmp_path, "g", 100)
    plots = {plot.title: plot for plot in recorded.plots}
    assert plots["Control groups' memory"].lines == [Line(name="a file", dash="", y=[None, 8, 8, None])]
    assert plots["Control groups' bandwidth"].lines == [Line(name="a on data read", dash="", y=[None, 1, 0, None])]
    assert recorded.kills == ((2.0, "b", 1),)
    assert recorded.marks == ((1.5, "hang data 1s"), (2.5, "x failed: no"))


def test_long_series_are_thinned_and_lose_nothing(tmp_path: Path) -> None:
    write(tmp_path / "g", "samples.jsonl", *(disk(n / 2, n * MIB, n) for n in range(1001)))
    (plot,) = (plot for plot in series.read_recording(tmp_path, "g", 21).plots if plot.title == "Disk bandwidth")
    assert len(plot.x) == 21 and (plot.x[0], plot.x[-1]) == (0, 500)
    seconds = [after - before for before, after in zip(plot.x, plot.x[1:], strict=False)]
    assert sum(
        (rate or 0) * length for rate, length in zip(plot.lines[0].y[1:], seconds, strict=True)
    ) == pytest.approx(1000)


def test_without_samples_there_are_no_plots(tmp_path: Path) -> None:
    assert series.read_recording(tmp_path, "nothing", 100) == series.Recording(
        begin_s=None, plots=(), marks=(), kills=()
    )
