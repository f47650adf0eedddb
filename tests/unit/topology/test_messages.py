"""The message and the place of each mistake."""

import pytest

from testbed.hardware.profiles import PROFILES
from testbed.topology import Topology
from testbed.topology.load import parse
from tests.support.topologies import errors

# One mistake each: the text after `version: 1\nguests:\n  g0:\n`, and its complete messages.
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
            "a.yaml:4:27: guests.g0.loops.l0.backing: expected NAME/FILE such as data/disk.img, or the name of a "
            "device, "
            "got '../../etc/passwd'"
        ],
    ),
    "a name that QEMU's option parser would split": (
        "    disks: {'a,b': {type: nvme, size: 1G}}\n",
        [
            "a.yaml:4:13: guests.g0.disks.a,b: expected a name of lower-case letters, digits and dashes, at most 16, "
            "got 'a,b'"
        ],
    ),
    "both kinds of limit": (
        "    disks: {data: {type: nvme, size: 1G, throttle: {iops-total: 1, iops-read: 1}}}\n",
        [
            "a.yaml:4:42: guests.g0.disks.data.throttle: expected iops-total or iops-read and iops-write, got both "
            "(QEMU refuses that)",
        ],
    ),
    "an unknown profile": (
        "    disks: {data: {type: nvme, size: 1G, profile: warp}}\n",
        [
            "a.yaml:4:51: guests.g0.disks.data.profile: expected the name of a profile, got 'warp' (there are "
            f"{', '.join(PROFILES)})"
        ],
    ),
    "a scale of nothing": (
        "    disks: {data: {type: nvme, size: 1G, scale: 0.5}}\n",
        [
            "a.yaml:4:49: guests.g0.disks.data.scale: expected a profile beside it, which it makes faster or slower, "
            "got none"
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
            "a.yaml:4:42: guests.g0.disks.data.throttle: iops-total-max: expected at least iops-total, which is 100, "
            "got 50"
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
        "      l0: {backing: data/f, size: 64M}\n      l1: {backing: data/f, size: 32M}\n      l2: {backing: data/g, "
        "size: 4M}\n"
        "    swaps: {s: {on: data/f, size: 16M}}\n",
        [
            "a.yaml:8:35: guests.g0.loops.l1.size: 'data/f' has 64M already (loops.l0), got 32M; give both the same, "
            "or leave this one out",
            "a.yaml:9:35: guests.g0.loops.l2.size: 'data/g' has 8M already (files.g), got 4M; give both the same, or "
            "leave this one out",
            "a.yaml:10:35: guests.g0.swaps.s.size: 'data/f' has 64M already (loops.l0), got 16M; give both the same, "
            "or leave this one out",
        ],
    ),
    "a file's keys on a whole device": (
        "    disks: {data: {type: nvme, size: 1G}, more: {type: nvme, size: 1G}}\n    loops:\n"
        "      l0: {backing: data, size: 64M, allocate: sparse}\n      l1: {backing: l0, filesystem: ext4}\n"
        "    swaps: {s: {on: more, size: 16M}}\n",
        [
            "a.yaml:6:33: guests.g0.loops.l0.size: expected none on a whole device, which has a size and content of "
            "its own; "
            "write data/FILE for a file there, or size-limit",
            "a.yaml:6:48: guests.g0.loops.l0.allocate: expected none on a whole device, which has a size and content "
            "of its own; "
            "write data/FILE for a file there",
            "a.yaml:7:37: guests.g0.loops.l1.filesystem: expected none on a whole device, which has a size and "
            "content of its own; "
            "write l0/FILE for a file there",
            "a.yaml:8:33: guests.g0.swaps.s.size: expected none on a whole device, which has a size and content of "
            "its own; "
            "write more/FILE for a file there",
        ],
    ),
    "two allocations of one file": (
        "    disks: {data: {type: nvme, size: 1G}}\n    files: {g: {path: data/g, size: 8M, allocate: sparse}}\n    "
        "loops:\n"
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
            "a.yaml:4:38: guests.g0.disks.data.size: expected at most 2048T, which is as much as a qcow2 file holds, "
            "got 2049T"
        ],
    ),
    "a disk that is unplugged twice": (
        "    disks: {data: {type: nvme, size: 1G}}\n    timeline:\n      - {at: 1s, do: unplug data}\n      - {at: "
        "2s, do: unplug data}\n",
        [
            "a.yaml:7:9: guests.g0.timeline.1: 'unplug data': expected a disk to unplug, 'data' is unplugged already "
            "after 2s"
        ],
    ),
    "too little memory": (
        "    memory: 1M\n",
        ["a.yaml:4:13: guests.g0.memory: expected a whole number of MiB, at least 256M, got 1M"],
    ),
}


@pytest.mark.parametrize(("text", "messages"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_reported_with_its_place(text: str, messages: list[str]) -> None:
    assert errors(f"version: 1\nguests:\n  g0:\n{text}") == messages


def test_users_of_one_file_may_state_or_omit_its_size() -> None:
    loops = "{l0: {backing: data/f, size: 64M}, l1: {backing: data/f, size: 64M}, l2: {backing: data/f}}"
    swaps = "{s: {on: data/f, size: 64M}}"
    text = f"    disks: {{data: {{type: nvme, size: 1G}}}}\n    loops: {loops}\n    swaps: {swaps}\n"
    assert isinstance(parse(f"version: 1\nguests:\n  g0:\n{text}", "a.yaml"), Topology)


def test_all_mistakes_are_reported_at_once_in_file_order() -> None:
    messages = errors("version: 2\nguests:\n  g0:\n    cpus: 99\n    memory: x\n    disk: {}\n")
    assert [message.split(": ")[0] for message in messages] == [
        "a.yaml:1:10",
        "a.yaml:4:11",
        "a.yaml:5:13",
        "a.yaml:6:5",
    ]
