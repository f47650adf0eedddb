"""Timelines: the entries in YAML, and the actions that they become."""

import itertools
import re

import pytest
from pydantic import ValidationError

from testbed.errors import UsageError
from testbed.hardware import commands
from testbed.hardware.disk_kinds import DISK_KINDS
from testbed.hardware.faults import DEAD, WORN
from testbed.hardware.latency import Latency
from testbed.hardware.throttle import Throttle
from testbed.topology.schedule import hotplug_mistakes, schedule, timeline_mistakes
from testbed.topology.timeline import TimelineEntry

DISKS = {"data": DISK_KINDS["virtio-blk"], "other": DISK_KINDS["nvme"]}


def act(**said: object) -> TimelineEntry:
    return TimelineEntry.model_validate(said)


def test_an_entry_runs_once_repeatedly_or_in_steps() -> None:
    (once,) = schedule(act(at="1.5s", do="hang data 2s"))
    assert (once.after_s, once.text, once.action) == (
        1.5,
        "hang data 2s",
        commands.Action(verb="hang", disk="data", value=2.0),
    )
    thrice = schedule(act(at="1s", every="500ms", times=3, do="inject data read=EIO,count=1"))
    assert [cue.after_s for cue in thrice] == [1.0, 1.5, 2.0]
    endless = schedule(act(every="2s", do="plug data"))
    assert [cue.after_s for cue in itertools.islice(endless, 1000)][-1] == 1998.0


def test_a_ramp_goes_from_one_value_to_the_other() -> None:
    slower = list(schedule(act(ramp="10s", steps=4, do="throttle data iops-total=1000..200 bps-read=8..4M")))
    assert [cue.after_s for cue in slower] == [0, 2.5, 5.0, 7.5, 10.0]
    assert [cue.action.value.iops_total for cue in slower] == [1000, 800, 600, 400, 200]
    assert [cue.action.value.bps_read >> 20 for cue in slower] == [8, 7, 6, 5, 4]
    later = list(schedule(act(at="1s", ramp="1s", steps=2, do="delay data 0..20ms")))
    assert [(cue.after_s, cue.action.value.read_us) for cue in later] == [(1.0, 0), (1.5, 10_000), (2.0, 20_000)]


@pytest.mark.parametrize(
    ("said", "mistake"),
    {
        "no time": ({"do": "plug data"}, "expected at, when, every or ramp, got none"),
        "two ways": ({"do": "delay data 1..2ms", "every": "1s", "ramp": "1s"}, "expected every or ramp, got both"),
        "times of what": ({"do": "plug data", "at": "1s", "times": 3}, "expected every beside times, got none"),
        "a ramp of nothing": (
            {"do": "throttle data iops-total=5", "ramp": "1s"},
            "expected ramp, and FROM..TO in what it does, got one",
        ),
        "no ramp": (
            {"do": "throttle data iops-total=5..9", "at": 0},
            "expected ramp, and FROM..TO in what it does, got one",
        ),
        "verb": ({"do": "explode data", "at": 0}, "expected one of throttle, delay"),
        "disk": ({"do": "hang dta 1s", "at": 0}, "expected one of the guest's disks (data, other), got 'dta'"),
        "no disk": ({"do": "hang", "at": 0}, "expected the name of a disk after hang"),
        "limits": ({"do": "throttle data iops-total=1 iops-read=1", "at": 0}, "got both (QEMU refuses that)"),
        "fault": ({"do": "inject data read=torn", "at": 0}, "expected an error for a read"),
        "memory": ({"do": "memory 2G", "at": 0}, "expected at most the guest's own 1G"),
        "size of an nvme": ({"do": "resize other 1G", "at": 0}, "'resize other 1G': QEMU's nvme keeps its size"),
        "no size": ({"do": "resize data 0", "at": 0}, "expected a size such as 2G, got 0"),
        "cpus": ({"do": "cpus 3", "at": 0}, "expected at most the guest's own 2"),
        "units": ({"do": "delay data 1ms..2", "ramp": "1s"}, "'delay data 1ms..2': 1ms..2: expected a duration"),
        "event": ({"do": "plug data", "when": {}}, "expected one of mark, console and counter, got none"),
        "events": ({"do": "plug data", "when": {"mark": "a", "console": "b"}}, "got mark and console"),
        "counter": (
            {"do": "plug data", "when": {"counter": "memory.current", "above": 5}},
            "expected a cgroup and its counter",
        ),
        "no bound": (
            {"do": "plug data", "when": {"cgroup": "a", "counter": "memory.current"}},
            "expected above or below",
        ),
        "pattern": ({"do": "plug data", "when": {"console": "("}}, "got '(': missing )"),
    }.values(),
)
def test_a_mistake_is_found_before_anything_runs(said: dict[str, object], mistake: str) -> None:
    assert mistake in "\n".join(timeline_mistakes(act(**said), DISKS, memory_bytes=1 << 30, cpus=2))


PLUGS = {
    "unplugged twice": (
        [{"do": "unplug data", "at": "1s"}, {"do": "unplug data surprise", "at": "2s"}],
        [1],
        "is unplugged already after 2s",
    ),
    "by time, not by place": (
        [{"do": "unplug data", "at": "3s"}, {"do": "unplug data", "at": "1s"}],
        [0],
        "is unplugged already after 3s",
    ),
    "plugged, and it is there": (
        [{"do": "plug data", "at": "1s"}],
        [0],
        "expected a disk to plug, 'data' is plugged after 1s",
    ),
    "again and again": ([{"do": "unplug data", "every": "1s"}], [0], "is unplugged already after 1s"),
    "out of step": (
        [{"do": "unplug data", "every": "2s"}, {"do": "plug data", "every": "3s", "at": "1s"}],
        [0],
        "already after 4s",
    ),
    "two disks": ([{"do": "unplug data", "at": "1s"}, {"do": "unplug other", "at": "1s"}], [], ""),
    "and plugged between": (
        [{"do": f"{verb} data", "at": f"{n}s"} for n, verb in enumerate(["unplug", "plug", "unplug"])],
        [],
        "",
    ),
    "in step, for ever": (
        [{"do": "unplug data", "every": "2s"}, {"do": "plug data", "every": "2s", "at": "1s"}],
        [],
        "",
    ),
    "by an event": ([{"do": "unplug data", "at": "1s"}, {"do": "unplug data", "when": {"mark": "a"}}], [], ""),
    "no such disk": ([{"do": "unplug gone", "at": "1s"}, {"do": "unplug gone", "at": "1s"}], [], ""),
    "a cold one": (
        [{"do": "unplug cold", "when": {"mark": "a"}}],
        [0],
        r"can be plugged while its guest runs \(data, other\), got 'cold'",
    ),
}


@pytest.mark.parametrize(("acts", "numbers", "why"), PLUGS.values(), ids=PLUGS)
def test_a_disk_can_be_unplugged_only_while_it_is_plugged(
    acts: list[dict[str, object]], numbers: list[int], why: str
) -> None:
    found = list(hotplug_mistakes([act(**said) for said in acts], {"data": True, "other": True, "cold": False}))
    assert [number for number, _ in found] == numbers
    assert all(re.search(why, said) for _, said in found)


def test_valid_entries_have_no_mistakes() -> None:
    for said in (
        {"do": "throttle data hdd-7200 scale=0.5", "at": "5s"},
        {"do": "unplug data surprise", "when": {"mark": "warm"}},
        {
            "do": "inject data read-only",
            "when": {"cgroup": "a/b", "counter": "memory.stat file", "above": "64M"},
            "at": "1s",
        },
        {"do": "hang other 200ms", "every": "1s", "times": 5, "when": {"console": "EXT4-fs .* mounted"}},
    ):
        assert list(timeline_mistakes(act(**said), DISKS, memory_bytes=1 << 30, cpus=2)) == []


def test_a_counter_that_is_no_file_of_a_cgroup_is_refused() -> None:
    for counter in ("../../proc/meminfo", "memory", "memory.stat file; reboot"):
        with pytest.raises(ValidationError):
            act(do="plug data", when={"cgroup": "a", "counter": counter, "above": 1})


def test_a_command_names_a_verb_and_a_disk() -> None:
    assert commands.parse(["throttle", "data", "iops-total=100", "scale=0.5"]).value == Throttle(iops_total=50)
    assert commands.parse(["delay", "data", "10ms", "scale=2"]).value == Latency(
        read_us=5000, write_us=5000, flush_us=5000
    )
    assert commands.parse(["inject", "data", "read-only"]).value == WORN
    assert commands.parse(["memory", "128M"]) == commands.Action(verb="memory", disk=commands.MACHINE, value=128 << 20)
    assert commands.parse(["cpus", "1"]).value == 1 and commands.parse(["cpus", "off"]).value is None
    assert (
        commands.parse(["unplug", "data", "surprise"]).value is True
        and commands.parse(["unplug", "data"]).value is False
    )
    assert [fault.operation for fault in DEAD] == ["read", "write", "flush", "discard"]
    for wrong, said in (
        ("unplug data now", "expected surprise, or nothing, got 'now'"),
        ("plug data now", "expected nothing more, got 'now'"),
        ("throttle data scale=0", "expected one scale such as scale=0.5"),
        ("throttle data", "expected what to do, or off, got nothing"),
        ("", "expected one of throttle, delay, inject, hang, unplug, plug, resize, memory, cpus, got 'nothing'"),
    ):
        with pytest.raises(UsageError, match=said):
            commands.parse(wrong.split())
