"""What is dropped from a bug, and that nothing is dropped which it needs."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from testbed.bugs.ddmin import Part, list_parts, minimize, smaller_machines, without_parts
from testbed.bugs.load import parse_mapping

PLAIN: dict[str, Any] = {
    "version": 1,
    "summary": "s",
    "script": ":",
    "signature": [{"status": 0}],
    "topology": {
        "guests": {
            "g0": {
                "memory": "1G",
                "disks": {
                    "data": {"type": "nvme", "size": "1G", "profile": "hdd-7200"},
                    "spare": {"type": "virtio-blk", "size": "1G"},
                },
                "loops": {"l0": {"backing": "data/disk.img", "size": "64M"}},
                "cgroups": {"a": {"memory.max": "64M", "pids.max": 5}, "a/b": {}},
                "timeline": [
                    {"at": "1s", "do": "hang data 1s"},
                    {"at": "2s", "do": "hang spare 1s"},
                    {"at": "3s", "do": "hang data 2s"},
                ],
            }
        }
    },
}


def test_everything_that_may_go_is_known_what_stands_on_others_first() -> None:
    said = [str(part) for part in list_parts(PLAIN)]
    assert said == [
        *(
            "timeline.0",
            "timeline.1",
            "timeline.2",
            "cgroups.a.memory.max",
            "cgroups.a.pids.max",
            "cgroups.a",
            "cgroups.a/b",
        ),
        *("loops.l0", "disks.data.profile", "disks.data", "disks.spare"),
    ]
    assert list_parts({"version": 1}) == ()


def test_parts_are_dropped_and_empty_sections_as_well() -> None:
    smaller = without_parts(
        PLAIN, [Part(("timeline", 0)), Part(("timeline", 2)), Part(("loops", "l0")), Part(("cgroups", "a", "pids.max"))]
    )
    guest = smaller["topology"]["guests"]["g0"]
    assert guest["timeline"] == [{"at": "2s", "do": "hang spare 1s"}] and "loops" not in guest
    assert guest["cgroups"] == {"a": {"memory.max": "64M"}, "a/b": {}}
    assert len(PLAIN["topology"]["guests"]["g0"]["timeline"]) == 3
    # A part of what has gone is gone.
    assert without_parts(PLAIN, [Part(("disks", "data")), Part(("disks", "data", "profile"))])["topology"]["guests"][
        "g0"
    ]["disks"].keys() == {"spare"}
    parse_mapping(without_parts(PLAIN, list_parts(PLAIN)))


def test_a_list_of_more_than_ten_is_dropped_at_the_right_places() -> None:
    plain = {"topology": {"guests": {"g0": {"append": [f"w{n}" for n in range(12)]}}}}
    left = without_parts(plain, [Part(("append", n)) for n in (0, 2, 9, 10, 11)])["topology"]["guests"]["g0"]["append"]
    assert left == ["w1", "w3", "w4", "w5", "w6", "w7", "w8"]


@given(st.integers(0, 24), st.data())
def test_what_is_left_is_what_is_needed(count: int, data: st.DataObject) -> None:
    every = [Part((str(number),)) for number in range(count)]
    needed = set(data.draw(st.lists(st.sampled_from(every), unique=True))) if every else set()
    search, asked = minimize(every), 0
    try:
        dropped = next(search)
        while True:
            asked += 1
            dropped = search.send(not set(dropped) & needed)
    except StopIteration as end:
        assert set(end.value) == set(every) - needed
    assert asked <= 4 * count * count + 4


def test_nothing_to_drop_asks_nothing_and_everything_at_once_asks_once() -> None:
    assert list(minimize([])) == []
    search = minimize([Part(("a",)), Part(("b",)), Part(("c",))])
    assert len(next(search)) == 3
    try:
        search.send(True)
    except StopIteration as end:
        assert len(end.value) == 3


def test_machines_become_smaller_step_by_step() -> None:
    plain, said = PLAIN, []
    while steps := list(smaller_machines(plain)):
        what, plain = steps[0]
        said.append(what)
        parse_mapping(plain)
    assert said == ["cpus: 1", "memory: 512M", "memory: 256M"]
