"""Parts of a topology that do not fit together, and the limits of each check."""

from pathlib import Path

import pytest

from testbed.errors import TopologyError
from testbed.topology import load
from testbed.topology.load import parse
from tests.support.topologies import errors
from tests.support.values import host_limits

DISKS = "    disks: {data: {type: virtio-blk, size: 1G}, fast: {type: nvme, size: 256M}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    loops: {l0: {backing: l1}, l1: {backing: l0}}\n", "'l0' stands on itself"),
        (
            "    loops: {l0: {backing: data/f}}\n",
            "guests.g0.loops.l0.backing: expected a size, or a file 'data/f' among `files`",
        ),
        ("    loops: {l0: {backing: dat}}\n", "expected the name of a device, got 'dat'; did you mean 'data'?"),
        ("    loops: {data: {backing: fast}}\n", "'data' is the name of something else already (disks.data)"),
        ("    files: {f: {path: nowhere/f, size: 4K}}\n", "expected the name of a filesystem, got 'nowhere'"),
        (
            "    dm: {a: {type: linear, on: [data]}, b: {type: crypt, on: [data]}}\n",
            "'data' can be used by one thing alone, got device 'a' and",
        ),
        ("    filesystems: {fs: {type: xfs, device: fast}}\n", "xfs needs at least 300M, 'fast' has 256M"),
        (
            "    swaps: {s: {on: fast}}\n    filesystems: {fast: {type: ext4}}\n",
            "'fast' can be used by one thing alone",
        ),
        (
            "    timeline: [{at: 1s, do: unplug dat}]\n",
            "guests.g0.timeline.0: 'unplug dat': expected one of the guest's disks (data, fast), got 'dat'",
        ),
        (
            "    filesystems: {fs: {type: ext4, device: fast}}\n    files: {f: {path: fs/f, size: 5000}}\n",
            "multiple of 4096 bytes, got 5000",
        ),
        (f"    networks: {{{', '.join(f'n{number}: {{}}' for number in range(15))}}}\n", "got 2 and 15 networks"),
        ("    loops: {l0: {backing: fast, offset: 256M}}\n", "expected less than the backing device 'fast'"),
        ("    loops: {l0: {backing: fast, offset: 100}}\n", "expected a multiple of 512 bytes, got 100"),
        ("    md: {m: {level: raid1, on: [data]}}\n", "guests.g0.md.m.on: "),
        (
            "    cgroups: {a: {io.max: {dat: {rbps: 1M}}}}\n",
            "cgroups.a.io.max.dat: expected the name of a device, got 'dat'; did you mean",
        ),
        (
            "    cgroups: {a: {io.cost.qos: {data: {}}}}\n",
            "cgroups.a.io.cost.qos: only the root has it; expected it under `/`",
        ),
        ("    cgroups: {/: {memory.max: 1G}}\n", "cgroups./.memory.max: the root has no limits"),
        ("    cgroups: {a: {memory.maks: 1G}}\n", "unknown key; did you mean 'memory.max'?"),
        (
            "    cgroups: {A: {}}\n",
            "expected a path of lower-case names such as tenant or tenant/job, or / for the root",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_reported(text: str, message: str) -> None:
    messages = errors(f"version: 1\nguests:\n  g0:\n{DISKS}{text}")
    assert any(message in line for line in messages), messages


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        ("{type: virtio-blk, size: 1G, queus: 2}", "queus: unknown key; did you mean 'queues'?"),
        ("{type: virtio-blk, size: 1G, zoned: {zone-size: 1M}}", "zoned: unknown key"),
        ("{type: nvme, size: 1G, zoned: {zone-size: 3M}}", "expected a part of the size of 1G, got 3M"),
        ("{type: nvme, size: 1G, image: x.img, format: qcow2}", "expected no format beside an image"),
        (
            "{type: nvme, size: 1G, logical-block-size: 4096, physical-block-size: 512}",
            "expected at least the logical block size of 4096",
        ),
        ("{type: nvme, size: 1G, throttle-group: g}", "expected one of the guest's throttle-groups, got 'g'"),
        (
            "{type: nvme, size: 1G, throttle: {iops-total: 1}, profile: hdd-7200}",
            "expected one of profile, throttle and throttle-group",
        ),
        (
            "{type: nvme, size: 8M, partitions: [{size: 8M}]}",
            "the partitions need more than the 8M of 'd', of which its label takes 2M",
        ),
        ("{size: 1G}", "d.type: expected this key, it is missing"),
        ("{type: nvme, size: 1000}", "size: expected a multiple of 4096 bytes, got 1000"),
        (
            "{type: nvme, size: 1G, image: x.img, partitions: [{size: 8M}]}",
            "expected no partitions on an image, which has its own",
        ),
        ("{type: nvme, size: 1G, format: qcow2, cache: volatile}", "expected a disk that is kept in a raw file"),
        ("{type: nvme, size: 1G, image: x.img, cache: lies}", "expected a disk that is kept in a raw file"),
        (
            "{type: nvme, size: 1G, cache: lies, cache-size: 5000}",
            "cache-size: expected a multiple of 4096 bytes, got 5000",
        ),
        (
            "{type: nvme, size: 1G, serial: tb-e}, e: {type: nvme, size: 1G}",
            "expected a serial that no other disk has, got 'tb-e'",
        ),
        ("{type: nvme, size: 1G, read-ahead: 5000}", "read-ahead: expected a multiple of 4096 bytes, got 5000"),
        (
            "{type: nvme, size: 1G}, root: {type: nvme, size: 1G}",
            "'root' is the name of a disk that every guest has; choose another",
        ),
        ("{type: nvme, size: 8M, partitions: [{size: 6M}, {}]}", "nothing of 'd' is left for it"),
        ("{type: nvme, size: 1G, scale: 2}", "expected a profile beside it"),
        ("{type: nvme, size: 1G, latency: {jitter: 1ms}}", "expected a delay of both, read, write or flush, got none"),
    ],
)
def test_an_impossible_disk_is_reported(disk: str, message: str) -> None:
    messages = errors(f"version: 1\nguests:\n  g0:\n    disks: {{d: {disk}}}\n")
    assert any(message in line for line in messages), messages


def test_partitions_of_a_loop_are_checked_after_its_backing() -> None:
    loops = "{loop0: {backing: t/file, size: 64M, partitions: [{size: 64M}]}}"
    messages = errors(f"version: 1\nguests:\n  g0:\n    filesystems: {{t: {{type: tmpfs}}}}\n    loops: {loops}\n")
    assert any(
        "the partitions need more than the 64M of 'loop0', of which its label takes 2M" in line for line in messages
    ), messages


def test_a_disk_with_partitions_cannot_be_used_as_a_whole(tmp_path: Path) -> None:
    disks = "{data: {type: nvme, size: 1G, partitions: [{size: 512M}]}}"
    text = f"version: 1\nguests:\n  g0:\n    disks: {disks}\n    swaps: {{s: {{on: data}}}}\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(
        TopologyError, match=r"guests\.g0\.swaps\.s: 'data' can be used by one thing alone, got .* and its partitions"
    ):
        load(tmp_path / "a.yaml", limits=host_limits(16 << 30))


def test_invalid_parts_do_not_hide_parts_that_do_not_fit_together() -> None:
    messages = errors(
        "version: 1\nguests:\n  g0:\n    memroy: 1G\n"
        "    disks:\n      data: {type: virtio, size: 1G}\n      good: {type: nvme, size: 1G}\n"
        "    loops:\n      l0: {backing: data/f, size: 8M}\n      l1: {backing: l2}\n      l2: {backing: l1}\n"
        "      l3: {backing: goood/f, size: 8M}\n"
    )
    assert [line.split(": ", 1)[1] for line in messages] == [
        "guests.g0.memroy: unknown key; did you mean 'memory'?",
        "guests.g0.disks.data.type: expected 'virtio-blk', 'nvme', 'virtio-scsi', got 'virtio'",
        "guests.g0.loops.l1.backing: 'l1' stands on itself",
        "guests.g0.loops.l2.backing: 'l2' stands on itself",
        "guests.g0.loops.l3.backing: expected the name of a device, got 'goood'; did you mean 'good'?",
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("    memory: 256M\n", "    memory: 255M\n", "at least 256M, got 255M"),
        ("    memory: 257M\n", "    memory: 268435457\n", "a whole number of MiB"),
        (
            "    filesystems: {fs: {type: ext4, device: data}}\n    files: {f: {path: fs/f, size: 966365184}}\n",
            "    filesystems: {fs: {type: ext4, device: data}}\n    files: {f: {path: fs/f, size: 966369280}}\n",
            "the files on 'fs' need more than nine tenths of its 1G",
        ),
        (
            "    loops: {l0: {backing: fast, offset: 512}}\n",
            "    loops: {l0: {backing: fast, offset: 513}}\n",
            "a multiple of 512 bytes, got 513",
        ),
        (
            "    cgroups: {a: {io.weight: {default: 50}}}\n",
            "    cgroups: {a: {io.weight: {dat: 50}}}\n",
            "expected the name of a device, got 'dat'",
        ),
        (
            "    loops: {l0: {backing: fast}, l1: {backing: fast}}\n",
            "    swaps: {s: {on: fast}, t: {on: fast}}\n",
            "'fast' can be used by one thing alone",
        ),
    ],
)
def test_the_bounds_of_each_check_of_a_guest(right: str, wrong: str, message: str) -> None:
    head = f"version: 1\nguests:\n  g0:\n{DISKS}"
    parse(head + right, "a.yaml")
    messages = errors(head + wrong)
    assert any(message in line for line in messages), messages


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("read-ahead: 128K", "read-ahead: 4095", "a multiple of 4096 bytes, got 4095"),
        ("cache: lies, cache-size: 8192", "cache: lies, cache-size: 4095", "a multiple of 4096 bytes, got 4095"),
        ("zoned: {zone-size: 64M}", "zoned: {zone-size: 48M}", "expected a part of the size of 1G, got 48M"),
        ("serial: own", "serial: tb-e", "expected a serial that no other disk has, got 'tb-e'"),
        (
            "logical-block-size: 4096, physical-block-size: 4096",
            "logical-block-size: 4096, physical-block-size: 2048",
            "at least the logical",
        ),
        ("partitions: [{size: 8M}]", "partitions: [{size: 2G}]", "the partitions need more than the 1G of 'd'"),
        ("partitions: [{size: 1022M}]", "partitions: [{size: 1023M}]", "the partitions need more than the 1G of 'd'"),
        (
            "partitions: [{size: 512M}, {size: 510M}]",
            "partitions: [{size: 512M}, {size: 511M}]",
            "the partitions need more than",
        ),
        ("partitions: [{size: 512M}, {}]", "partitions: [{size: 1022M}, {}]", "nothing of 'd' is left for it"),
        ("profile: hdd-7200, scale: 2", "scale: 2", "expected a profile beside it"),
        ("latency: {read: 1ms}", "latency: {}", "expected a delay of both, read, write or flush, got none"),
    ],
)
def test_the_bounds_of_each_check_of_a_disk(right: str, wrong: str, message: str) -> None:
    def text(words: str) -> str:
        disks = f"{{d: {{type: nvme, size: 1G, {words}}}, e: {{type: nvme, size: 1G}}}}"
        return f"version: 1\nguests:\n  g0:\n    disks: {disks}\n"

    parse(text(right), "a.yaml")
    messages = errors(text(wrong))
    assert any(message in line for line in messages), messages


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            f"{DISKS}    throttle-groups: {{g: {{iops-total: 1, iops-read: 1}}}}\n",
            "throttle-groups.g: expected iops-total or iops-read",
        ),
        (
            f"{DISKS}    filesystems: {{fs: {{type: xfs, device: fast}}}}\n",
            "filesystems.fs.type: xfs needs at least 300M, 'fast' has 256M",
        ),
        (
            f"{DISKS}    swaps: {{s: {{on: fast}}, t: {{on: fast}}, u: {{on: fast}}}}\n",
            "swaps.u: 'fast' can be used by one thing alone",
        ),
        (
            f"{DISKS}    filesystems: {{data: {{type: ext4}}}}\n    loops: "
            f"{{l0: {{backing: data/f, size: 64M, filesystem: xfs}}}}\n",
            "loops.l0.filesystem: 'data' has ext4 already, got xfs",
        ),
        (
            f"{DISKS}    filesystems: {{data: {{type: xfs}}}}\n    loops: "
            f"{{l0: {{backing: data/f, size: 64M, filesystem: ext4}}}}\n",
            "loops.l0.filesystem: 'data' has xfs already, got ext4",
        ),
        (
            "    disks: {d: {type: nvme, size: 1G, partitions: [{size: 512M}, {size: 256M}, {size: 511M}]}}\n",
            "disks.d.partitions.2: the partitions need more than the 1G of 'd'",
        ),
        (
            "    disks: {d: {type: nvme, size: 1G, partitions: [{size: 512M}, {size: 510M}, {}]}}\n",
            "disks.d.partitions.2: nothing of 'd' is left for it",
        ),
        (
            "    disks: {d: {type: nvme, size: 1G, throttle: {iops-total: 1}, profile: hdd-7200}}\n",
            "disks.d.throttle: expected one of profile, throttle and throttle-group, got profile and throttle",
        ),
        (
            f"    disks: {{{', '.join(f'd{number}: {{type: nvme, size: 1G}}' for number in range(17))}}}\n",
            "disks: expected at most 16 disks and networks, one for each hot-plug port, got 17",
        ),
    ],
)
def test_each_mistake_is_reported_at_its_own_place(text: str, mistake: str) -> None:
    assert [line for line in errors(f"version: 1\nguests:\n  g0:\n{text}") if f": guests.g0.{mistake}" in line]


def test_a_guest_may_have_as_many_disks_as_ports() -> None:
    disks = ", ".join(f"d{number}: {{type: nvme, size: 1G}}" for number in range(16))
    assert len(parse(f"version: 1\nguests:\n  g0:\n    disks: {{{disks}}}\n", "a.yaml").guests["g0"].disks) == 16
