import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from testbed.errors import TopologyError
from testbed.hardware.profiles import PROFILES
from testbed.qemu.blockdev import throttle_of
from testbed.topology import GuestModel, Topology, load, load_points, unused
from testbed.topology.load import parse
from testbed.topology.model import json_schema
from tests.support.values import host_limits

ROOT = Path(__file__).parents[3]
DEFAULT = (ROOT / "topologies" / "default.yaml").read_text()


def errors(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse(text, "a.yaml")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", sorted((ROOT / "topologies").glob("*.yaml")), ids=lambda path: path.name)
def test_every_topology_that_ships_is_valid(path: Path) -> None:
    assert all(topology.guests for topology in load_points(path).values())


def test_the_default_topology_is_one_guest_with_both_kinds_of_disk_and_nothing_that_scenarios_leave_unused() -> None:
    (guest,) = parse(DEFAULT, "default.yaml").guests.values()
    assert {disk.type for disk in guest.disks.values()} == {"virtio-blk", "nvme"}
    assert list(unused.unused_parts(guest)) == [] and unused.without_unused(guest) == guest


# A part of each kind that scenarios have no use for, and one line of what is said of each.
STACKED = """\
version: 1
guests:
  g0:
    kernel: debian-6.1
    disks:
      data: {type: virtio-blk, size: 1G, read-ahead: 64K, partitions: [{size: 512M}, {}]}
      fast: {type: nvme, size: 1G, profile: hdd-7200}
    filesystems: {fast: {type: xfs}}
    files: {f: {path: fast/f, size: 64M}}
    loops:
      l0: {backing: fast/disk.img, size: 256M, direct-io: true}
    swaps: {s: {on: data-p2}}
    dm: {joined: {type: linear, on: [l0]}}
    cgroups: {tenant: {memory.max: 256M}}
    timeline: [{at: 5s, do: throttle fast iops-total=100}]
"""


def test_what_scenarios_leave_unused_is_an_error_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(STACKED)
    with pytest.raises(TopologyError) as caught:
        unused.load_for_scenarios(file, limits=None, kernel=False, ignore=False)
    lines = [str(problem).removeprefix(str(tmp_path)) for problem in caught.value.problems]
    assert [line.partition(": not used: ")[0] for line in lines] == [
        "/a.yaml:4:5: guests.g0.kernel",
        "/a.yaml:6:42: guests.g0.disks.data.read-ahead",
        "/a.yaml:6:59: guests.g0.disks.data.partitions",
        "/a.yaml:8:5: guests.g0.filesystems",
        "/a.yaml:9:5: guests.g0.files",
        "/a.yaml:10:5: guests.g0.loops",
        "/a.yaml:12:5: guests.g0.swaps",
        "/a.yaml:13:5: guests.g0.dm",
        "/a.yaml:14:5: guests.g0.cgroups",
    ]
    assert all(line.endswith("; leave it out, or add --ignore-stack") for line in lines)


def test_with_ignore_stack_scenarios_get_the_file_without_it_and_can_say_what_it_was(tmp_path: Path) -> None:
    base, file = tmp_path / "base.yaml", tmp_path / "a.yaml"
    base.write_text(STACKED)
    file.write_text("extends: base.yaml\nversion: 1\nguests: {g0: {memory: 512M}}\n")
    with pytest.raises(
        TopologyError, match=r"base\.yaml:10:5: guests\.g0\.loops: not used: scenarios build stacks of their own"
    ):
        unused.load_for_scenarios(file, limits=None, kernel=True, ignore=False)
    found = unused.load_for_scenarios(file, limits=None, kernel=True, ignore=True)
    assert found.kernel == "debian-6.1" and "guests.g0.kernel" not in found.unused and "guests.g0.loops" in found.unused
    said = found.guest.model_dump(by_alias=True, exclude_defaults=True)
    assert said.keys() == {"memory", "disks", "timeline"}
    assert said["disks"]["data"].keys() == {"type", "size"} and said["disks"]["fast"]["profile"] == "hdd-7200"


def test_a_field_that_the_models_get_later_is_unused_until_it_is_known_to_reach_scenarios() -> None:
    class Later(GuestModel):
        ramdisks: dict[str, int] = Field(default_factory=dict)

    assert list(unused.unused_parts(Later(ramdisks={"r": 1}))) == [
        (("ramdisks",), "scenarios build stacks of their own")
    ]


def test_the_language_of_the_design_is_understood() -> None:
    text = """\
version: 1
guests:
  g0:
    kernel: debian-6.1
    cpus: 2
    memory: 1G
    disks:
      data: {type: virtio-blk, size: 2G, profile: hdd-7200}
      fast: {type: nvme, size: 2G, throttle: {iops-total: 3000, bps-total: 125M}}
    loops:
      l0: {backing: data/disk.img, filesystem: ext4, size: 512M, direct-io: false}
      l1: {backing: l0/inner.img, filesystem: ext4, size: 256M}     # a loop on a file on a loop
"""
    guest = parse(text, "a.yaml").guests["g0"]
    assert throttle_of(guest.disks["data"]) == PROFILES["hdd-7200"].throttle
    assert throttle_of(guest.disks["fast"]).bps_total == 125 << 20
    assert guest.loops["l1"].holder == "l0"


# One mistake each: the text after `version: 1\nguests:\n  g0:\n`, and the messages that it gets, whole.
MISTAKES = {
    "unknown key, with a suggestion": (
        "    kernl: x\n",
        ["a.yaml:4:5: guests.g0.kernl: unknown key; did you mean 'kernel'?"],
    ),
    "a size that is none": (
        "    disks: {data: {type: nvme, size: big}}\n",
        ["a.yaml:4:38: guests.g0.disks.data.size: expected a size such as 2G, got 'big'"],
    ),
    "an unknown disk type": (
        "    disks: {data: {type: floppy, size: 1G}}\n",
        ["a.yaml:4:26: guests.g0.disks.data.type: expected 'virtio-blk', 'nvme', 'virtio-scsi', got 'floppy'"],
    ),
    "a bare word that YAML 1.1 reads otherwise": (
        "    loops: {l0: {backing: t/f, filesystem: tmpfs, size: 4M, direct-io: on}}\n",
        [
            "a.yaml:4:72: guests.g0.loops.l0.direct-io: expected a value that every reader of YAML reads alike, got on "
            "(YAML 1.1 reads it as true or false; write true or false, or quote it)"
        ],
    ),
    "a number of base 60": (
        "    cpus: 1:30\n",
        [
            "a.yaml:4:11: guests.g0.cpus: expected a value that every reader of YAML reads alike, got 1:30 "
            "(YAML 1.1 reads it as a number of base 60; quote it)"
        ],
    ),
    "the same key twice": ("    cpus: 1\n    cpus: 2\n", ["a.yaml:5:5: guests.g0.cpus: the key stands here twice"]),
    "a loop on itself": (
        "    loops: {l0: {backing: l0/f, size: 4M}}\n",
        ["a.yaml:4:27: guests.g0.loops.l0.backing: 'l0' stands on itself"],
    ),
    "a dangling reference": (
        "    loops: {l0: {backing: disk/f, size: 4M}}\n",
        ["a.yaml:4:27: guests.g0.loops.l0.backing: expected the name of a device, got 'disk' (there are l0)"],
    ),
    "a path that climbs out": (
        "    loops: {l0: {backing: ../../etc/passwd, size: 4M}}\n",
        [
            "a.yaml:4:27: guests.g0.loops.l0.backing: expected NAME/FILE such as data/disk.img, or the name of a device, "
            "got '../../etc/passwd'"
        ],
    ),
    "a name that QEMU's option parser would split": (
        "    disks: {'a,b': {type: nvme, size: 1G}}\n",
        [
            "a.yaml:4:13: guests.g0.disks.a,b: expected a name of lower-case letters, digits and dashes, at most 16, got 'a,b'"
        ],
    ),
    "both kinds of limit": (
        "    disks: {data: {type: nvme, size: 1G, throttle: {iops-total: 1, iops-read: 1}}}\n",
        [
            "a.yaml:4:42: guests.g0.disks.data.throttle: expected iops-total or iops-read and iops-write, got both (QEMU refuses that)",
        ],
    ),
    "an unknown profile": (
        "    disks: {data: {type: nvme, size: 1G, profile: warp}}\n",
        [
            f"a.yaml:4:51: guests.g0.disks.data.profile: expected the name of a profile, got 'warp' (there are {', '.join(PROFILES)})"
        ],
    ),
    "a scale of nothing": (
        "    disks: {data: {type: nvme, size: 1G, scale: 0.5}}\n",
        [
            "a.yaml:4:49: guests.g0.disks.data.scale: expected a profile beside it, which it makes faster or slower, got none"
        ],
    ),
    "a jitter of nothing": (
        "    disks: {data: {type: nvme, size: 1G, latency: {jitter: 1ms}}}\n",
        ["a.yaml:4:42: guests.g0.disks.data.latency: expected a delay of both, read, write or flush, got none"],
    ),
    "a delay without a unit": (
        "    disks: {data: {type: nvme, size: 1G, latency: {read: 5}}}\n",
        ["a.yaml:4:58: guests.g0.disks.data.latency.read: expected a duration such as 5ms, got 5"],
    ),
    "a burst below its limit": (
        "    disks: {data: {type: nvme, size: 1G, throttle: {iops-total: 100, iops-total-max: 50}}}\n",
        [
            "a.yaml:4:42: guests.g0.disks.data.throttle: iops-total-max: expected at least iops-total, which is 100, got 50"
        ],
    ),
    "files that do not fit": (
        "    disks: {data: {type: nvme, size: 8M}}\n    loops: {l0: {backing: data/f, size: 64M}}\n",
        ["a.yaml:5:41: guests.g0.loops.l0.size: the files on 'data' need more than nine tenths of its 8M"],
    ),
    "two filesystems on one disk": (
        "    disks: {data: {type: nvme, size: 1G}}\n    loops:\n"
        "      l0: {backing: data/f, size: 4M}\n      l1: {backing: data/g, size: 4M, filesystem: xfs}\n",
        [
            "a.yaml:7:51: guests.g0.loops.l1.filesystem: 'data' has ext4 already, got xfs",
        ],
    ),
    "two sizes of one file": (
        "    disks: {data: {type: nvme, size: 1G}}\n    files: {g: {path: data/g, size: 8M}}\n    loops:\n"
        "      l0: {backing: data/f, size: 64M}\n      l1: {backing: data/f, size: 32M}\n      l2: {backing: data/g, size: 4M}\n"
        "    swaps: {s: {on: data/f, size: 16M}}\n",
        [
            "a.yaml:8:35: guests.g0.loops.l1.size: 'data/f' has 64M already (loops.l0), got 32M; give both the same, or leave this one out",
            "a.yaml:9:35: guests.g0.loops.l2.size: 'data/g' has 8M already (files.g), got 4M; give both the same, or leave this one out",
            "a.yaml:10:35: guests.g0.swaps.s.size: 'data/f' has 64M already (loops.l0), got 16M; give both the same, or leave this one out",
        ],
    ),
    "a file's keys on a whole device": (
        "    disks: {data: {type: nvme, size: 1G}, more: {type: nvme, size: 1G}}\n    loops:\n"
        "      l0: {backing: data, size: 64M, allocate: sparse}\n      l1: {backing: l0, filesystem: ext4}\n"
        "    swaps: {s: {on: more, size: 16M}}\n",
        [
            "a.yaml:6:33: guests.g0.loops.l0.size: expected none on a whole device, which has a size and content of its own; "
            "write data/FILE for a file there, or size-limit",
            "a.yaml:6:48: guests.g0.loops.l0.allocate: expected none on a whole device, which has a size and content of its own; "
            "write data/FILE for a file there",
            "a.yaml:7:37: guests.g0.loops.l1.filesystem: expected none on a whole device, which has a size and content of its own; "
            "write l0/FILE for a file there",
            "a.yaml:8:33: guests.g0.swaps.s.size: expected none on a whole device, which has a size and content of its own; "
            "write more/FILE for a file there",
        ],
    ),
    "two allocations of one file": (
        "    disks: {data: {type: nvme, size: 1G}}\n    files: {g: {path: data/g, size: 8M, allocate: sparse}}\n    loops:\n"
        "      l0: {backing: data/f, size: 64M}\n      l1: {backing: data/f, allocate: written}\n"
        "      l2: {backing: data/f, allocate: sparse}\n      l3: {backing: data/g, allocate: fallocated}\n",
        [
            "a.yaml:9:39: guests.g0.loops.l2.allocate: 'data/f' is written already (loops.l0), got sparse; "
            "give both the same, or leave this one out",
            "a.yaml:10:39: guests.g0.loops.l3.allocate: 'data/g' is sparse already (files.g), got fallocated; "
            "give both the same, or leave this one out",
        ],
    ),
    "a disk that no qcow2 is": (
        "    disks: {data: {type: nvme, size: 2049T, format: qcow2}}\n",
        [
            "a.yaml:4:38: guests.g0.disks.data.size: expected at most 2048T, which is as much as a qcow2 file holds, got 2049T"
        ],
    ),
    "a disk that is unplugged twice": (
        "    disks: {data: {type: nvme, size: 1G}}\n    timeline:\n      - {at: 1s, do: unplug data}\n      - {at: 2s, do: unplug data}\n",
        [
            "a.yaml:7:9: guests.g0.timeline.1: 'unplug data': expected a disk to unplug, 'data' is unplugged already after 2s"
        ],
    ),
    "too little memory": (
        "    memory: 1M\n",
        ["a.yaml:4:13: guests.g0.memory: expected a whole number of MiB, at least 256M, got 1M"],
    ),
}


@pytest.mark.parametrize(("text", "messages"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_said_with_its_place(text: str, messages: list[str]) -> None:
    assert errors(f"version: 1\nguests:\n  g0:\n{text}") == messages


def test_things_on_one_file_may_all_state_its_size_or_leave_it_out() -> None:
    loops = "{l0: {backing: data/f, size: 64M}, l1: {backing: data/f, size: 64M}, l2: {backing: data/f}}"
    text = f"    disks: {{data: {{type: nvme, size: 1G}}}}\n    loops: {loops}\n    swaps: {{s: {{on: data/f, size: 64M}}}}\n"
    assert isinstance(parse(f"version: 1\nguests:\n  g0:\n{text}", "a.yaml"), Topology)


def test_all_mistakes_are_said_at_once_in_the_files_order() -> None:
    said = errors("version: 2\nguests:\n  g0:\n    cpus: 99\n    memory: x\n    disk: {}\n")
    assert [message.split(": ")[0] for message in said] == ["a.yaml:1:10", "a.yaml:4:11", "a.yaml:5:13", "a.yaml:6:5"]


@pytest.mark.parametrize(
    "text",
    ["", "[", "a", "- 1", "version: 1", "&a [*a]", "{" * 5000, "version: 1\nguests: {}\n", "\x00", "a: !!binary x"],
)
def test_what_is_no_topology_is_an_error_with_a_place(text: str) -> None:
    assert all(message.startswith("a.yaml:") for message in errors(text))


def test_a_file_that_is_not_there_or_not_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\n# \xff\n")
    with pytest.raises(TopologyError, match=r"latin\.yaml:2:3: expected UTF-8"):
        load(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "version: 1\nguests: {g: {append: ['\x1b[2J']}}\n",
            "a.yaml:2:24: not YAML: the character U+001B must not stand in it",
        ),
        ("version: true\nguests: {g: {}}\n", "a.yaml:1:10: version: expected 1, got true"),
        ("version: 1.0\nguests: {g: {}}\n", "a.yaml:1:10: version: expected 1, got 1.0"),
        ("version: 1\nguests: {g: {cpus: two}}\n", "guests.g.cpus: expected a whole number, got 'two'"),
        ("version: 1\nguests: {g: {cpus: 99999999999999999999999999}}\n", "guests.g.cpus: "),
        ("version: 1\nguests: {g: {sample: 11min}}\n", "guests.g.sample: expected at most 10min, got '11min'"),
        (f"version: 1\nguests: {{g: {{append: {'x' * 5000}}}}}\n", "guests.g.append: expected a list, got 'xxx"),
    ],
)
def test_what_is_wrong_is_said_in_words_of_the_file_and_no_longer_than_a_person_reads(text: str, said: str) -> None:
    (message,) = errors(text)
    assert said in message and len(message) < 400, message


def test_aliases_do_not_multiply_without_end() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert any("more than" in message for message in errors(bomb))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(DEFAULT)), st.integers(0, 12), st.text(max_size=6)), max_size=4))
def test_a_mutated_file_is_a_topology_or_an_error_never_a_traceback(cuts: list[tuple[int, int, str]]) -> None:
    text = DEFAULT
    for at, length, new in cuts:
        text = text[:at] + new + text[at + length :]
    try:
        assert isinstance(parse(text, "a.yaml"), Topology)
    except TopologyError as error:
        assert error.problems


def test_the_published_schema_is_the_models() -> None:
    assert (ROOT / "topologies" / "schema.json").read_text() == json_schema()


def test_a_disk_is_no_larger_than_a_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8,000,000T on ext4, whose files have 16T."""

    def refuses(descriptor: int, size_bytes: int) -> None:
        if size_bytes > 16 << 40:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        truncate(descriptor, size_bytes)

    truncate = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", refuses)
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "not" / "there"))
    (tmp_path / "a.yaml").write_text(
        "version: 1\nguests:\n  g0:\n    disks:\n      a: {type: nvme, size: 8000000T, namespaces: {b: {size: 17T}}}\n"
        "      c: {type: nvme, size: 2T}\n      d: {type: nvme, size: 8000000T, format: null-co}\n"
    )
    with pytest.raises(TopologyError) as found:
        load(tmp_path / "a.yaml", limits=host_limits(8 << 30))
    said = "expected a size that a file of this machine can have, got"
    assert [(one.path, one.message) for one in found.value.problems] == [
        ("guests.g0.disks.a.size", f"{said} 8000000T: File too large"),
        ("guests.g0.disks.a.namespaces.b.size", f"{said} 17T: File too large"),
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.yaml"]


def test_thousands_of_devices_on_top_of_each_other_are_no_recursion() -> None:
    loops = "".join(
        f"      l{number}: {{backing: {f'l{number - 1}' if number else 'data'}}}\n" for number in range(1500)
    )
    head = "version: 1\nguests:\n  g0:\n    disks: {data: {type: nvme, size: 1G}}\n    loops:\n"
    for text in (loops, "".join(reversed(loops.splitlines(keepends=True)))):
        assert len(parse(head + text, "a.yaml").guests["g0"].loops) == 1500
