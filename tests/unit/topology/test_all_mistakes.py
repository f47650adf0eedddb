"""No mistake hides another: values below misspelt keys are checked, and every mistake in an entry is reported."""

from __future__ import annotations

import pytest

from testbed.bugs.load import parse_mapping
from testbed.errors import TopologyError
from testbed.topology.load import parse


def problems(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse(text, "a.yaml")
    return [str(problem).removeprefix("a.yaml:") for problem in caught.value.problems]


def test_values_below_a_misspelt_key_are_checked() -> None:
    text = """\
version: 1
guests:
  g0:
    disk:
      data: {type: virtio-blkk, size: 1G, profil: hdd}
      more: {type: nvme, sizee: 2GB}
    cgroup:
      a: {memory.maxx: big}
    loops: {l0: {backing: dta}}
"""
    said = problems(text)
    assert [line.split(": expected one")[0][:70] for line in said] == [
        "4:5: guests.g0.disk: unknown key; did you mean 'disks'?",
        "5:20: guests.g0.disk.data.type: expected 'virtio-blk', 'nvme', 'virtio-scs"[:70],
        "5:43: guests.g0.disk.data.profil: unknown key; did you mean 'profile'?",
        "5:51: guests.g0.disk.data.profil: expected the name of a profile, got '"[:70],
        "6:26: guests.g0.disk.more.sizee: unknown key; did you mean 'size'?",
        "6:33: guests.g0.disk.more.sizee: expected a size such as 2G, got '2GB';"[:70],
        "7:5: guests.g0.cgroup: unknown key; did you mean 'cgroups'?",
        "8:11: guests.g0.cgroup.a.memory.maxx: unknown key; did you mean 'memory.max'?"[:70],
        "8:24: guests.g0.cgroup.a.memory.maxx: expected a size such as 2G, got 'big'"[:70],
        "9:27: guests.g0.loops.l0.backing: expected the name of a device, got 'dta'; did"[:70],
    ]


def test_values_below_a_misspelt_key_beside_the_right_one_are_checked() -> None:
    text = """\
version: 1
guests:
  g0:
    disks: {data: {type: nvme, size: 1G}}
    disk: {more: {type: nvme, size: 7}}
"""
    assert problems(text) == [
        "5:5: guests.g0.disk: unknown key; did you mean 'disks'?",
        "5:37: guests.g0.disk.more.size: expected a multiple of 4096 bytes, got 7",
    ]


def test_every_mistake_of_a_timeline_entry_is_reported_at_its_index() -> None:
    text = """\
version: 1
guests:
  g0:
    disks: {data: {type: nvme, size: 1G}}
    timeline:
      - {do: 3, at: 1}
      - {doo: throttle dat iops-totl=1 bps-total=x, at: 1s, times: 3}
      - {do: inject dat raed=EIO, when: {mark: a, console: "(", above: 3}}
      - {do: "inject data read=EIOO,probability=2 write=foo"}
      - {do: delay data raed=5ms write=fast, at: 1s}
"""
    said = problems(text)

    def of(number: int) -> str:
        return "\n".join(line for line in said if f"guests.g0.timeline.{number}" in line)

    assert "timeline.0.do: expected text" in of(0) and "timeline.0.at: expected a duration" in of(0)
    for part in (
        "unknown key; did you mean 'do'?",
        "every beside times",
        "disks (data), got 'dat'",
        "got 'iops-totl'",
        "bps-total: expected a",
    ):
        assert part in of(1)
    for part in (
        "got mark and console",
        "above or below",
        "console: expected a regular",
        "disks (data), got 'dat'",
        "got 'raed'",
    ):
        assert part in of(2)
    for part in ("when shall it be?", "got 'EIOO'", "probability: expected", "got 'foo'"):
        assert part in of(3)
    assert "got 'raed'; write: expected a duration" in of(4)


def test_an_unknown_axis_hides_no_other_mistake() -> None:
    text = """\
version: 1
matrix: {axes: {disk: [nvme]}}
guests:
  g0:
    append: ["a=${axis}"]
    disks: {data: {type: "${dsk}", size: 1G}, more: {type: "${disk}", size: 7}}
"""
    assert problems(text) == [
        "5:14: guests.g0.append.0: expected an axis of the matrix, got ${axis} (there are disk)",
        "6:26: guests.g0.disks.data.type: expected an axis of the matrix, got ${dsk}; did you mean 'disk'?",
        "6:77: guests.g0.disks.more.size: expected a multiple of 4096 bytes, got 7",
    ]


def test_values_below_a_misspelt_key_of_a_bug_file_are_checked() -> None:
    plain = {
        "version": 1,
        "summary": "a bug",
        "scrpt": "true",
        "signature": [{"expct": "("}],
        "topology": {"guests": {"g0": {"disk": {"data": {"type": "nvme", "size": "2GB"}}}}},
    }
    with pytest.raises(TopologyError) as caught:
        parse_mapping(plain)
    said = {problem.path: problem.message[:40] for problem in caught.value.problems}
    assert said.keys() >= {
        "scrpt",
        "signature.0.expct",
        "topology.guests.g0.disk",
        "topology.guests.g0.disk.data.size",
    }, said
    assert any(problem.message.startswith("expected a regular expression") for problem in caught.value.problems), said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "cpus: 08",
            "got 08 (YAML 1.1 reads it as octal, or as text where 8 or 9 is in it; write it without the leading 0",
        ),
        ("cpus: 010", "got 010 (YAML 1.1 reads it as octal"),
        ("cpus: 0o8", "got 0o8 (readers of YAML differ about this number"),
        ("cpus: 0x1F", "got 0x1F (readers of YAML differ"),
        ("memory: 1_000", "got 1_000 (readers of YAML differ"),
        ("memory: 1e9", "got 1e9 (readers of YAML differ"),
        ("memory: 1:30", "got 1:30 (YAML 1.1 reads it as a number of base 60"),
        ("kernel: no", "got no (YAML 1.1 reads it as true or false"),
        ("kernel: NULL", "got NULL (readers of YAML take it for nothing"),
        ("kernel: .inf", "got .inf (readers of YAML take it for a number that is none"),
        ("kernel: 2026-11-30", "got 2026-11-30 (YAML 1.1 reads it as a date"),
        ("disks: {off: {type: nvme, size: 1G}}", "expected a key that every reader of YAML reads alike, got off"),
        (
            "disks: {null: {type: nvme, size: 1G}}",
            "expected a key that every reader of YAML reads alike, got null (it is no text",
        ),
        (
            "disks: {data: {<<: {type: nvme}, size: 1G}}",
            "got <<, which merges mappings in YAML 1.1 alone; write the keys out, or use `extends`",
        ),
        ("cpus: !!int 3", "expected no tag, got tag:yaml.org,2002:int"),
        (
            'kernel: "a\\0b"',
            "guests.g0.kernel: expected text without NUL and without halves of characters, got 'a\\x00b'",
        ),
        ('kernel: "a\\ud800b"', "expected text without NUL and without halves of characters"),
        ("cpus: 2, cpus: 3", "guests.g0.cpus: the key stands here twice"),
    ],
)
def test_values_that_yaml_readers_parse_differently_are_refused(value: str, said: str) -> None:
    (problem,) = problems(f"version: 1\nguests: {{g0: {{{value}}}}}\n")
    assert said in problem


def test_values_that_yaml_readers_parse_alike_are_accepted() -> None:
    disks = "{n: &a {type: nvme, size: 1G}, y: *a, m: *a}"
    text = f"version: 1\nguests: {{g0: {{append: ['08', '<<'], disks: {disks}, swaps: {{s: {{on: m}}}}}}}}\n"
    assert parse(text, "a.yaml").guests["g0"].append == ("08", "<<")
    assert parse("\ufeff" + text.replace("\n", "\r\n"), "a.yaml").guests["g0"].disks["y"].size == 1 << 30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\nguests:\n\tg0: {}\n", "3:1: not YAML: a tab cannot indent, or stand before a value; use spaces"),
        (
            "version: 1\nguests: {g0: {}}\n---\nversion: 1\n",
            "3:1: not YAML: expected one document, got another after ---",
        ),
        ("version: 1\nguests: {g0: {}}\n\0\n", "3:1: not YAML: the character U+0000 must not stand in it"),
    ],
)
def test_invalid_yaml_has_a_helpful_message(text: str, said: str) -> None:
    assert problems(text) == [said]


def test_keys_of_a_refused_merge_are_not_reported_as_missing() -> None:
    text = "version: 1\nguests: {g0: {disks: {a: &a {type: nvme, size: 1G}, b: {<<: *a, size: 7}}}}\n"
    assert [problem.partition(": ")[2][:60] for problem in problems(text)] == [
        "guests.g0.disks.b.<<: expected each key by itself, got <<, wh"[:60],
        "guests.g0.disks.b.size: expected a multiple of 4096 bytes, got 7"[:60],
    ]


@pytest.mark.parametrize(
    ("disk", "loop", "said"),
    [
        (
            "4096",
            "logical-block-size: 512",
            "logical-block-size: expected at least 4096 for direct I/O, which is the block size below file 'd/f'",
        ),
        (
            "4096",
            "offset: 512",
            "offset: expected a multiple of 4096 for direct I/O, which is the block size below file 'd/f', got 512",
        ),
        ("512", "logical-block-size: 512, offset: 512", ""),
        ("4096", "", ""),
        ("4096", "logical-block-size: 4096, offset: 8192", ""),
    ],
)
def test_direct_io_with_impossible_alignment_is_a_mistake(disk: str, loop: str, said: str) -> None:
    text = f"""\
version: 1
guests:
  g0:
    disks: {{d: {{type: nvme, size: 1G, logical-block-size: {disk}}}}}
    loops: {{l0: {{backing: d/f, size: 64M, direct-io: true, {loop}}}}}
"""
    if said:
        (problem,) = problems(text)
        assert said in problem
        assert parse(text.replace("direct-io: true, ", ""), "a.yaml"), "without direct I/O it is right"
    else:
        assert parse(text, "a.yaml")


def test_block_sizes_propagate_up_the_stack() -> None:
    text = """\
version: 1
guests:
  g0:
    disks: {d: {type: nvme, size: 1G, logical-block-size: 4096, partitions: [{}]}, s: {type: nvme, size: 1G}}
    dm: {both: {type: linear, on: [d-p1, s]}}
    loops:
      l0: {backing: both, direct-io: true}
      l1: {backing: l0/f, size: 64M, direct-io: true, logical-block-size: 1024}
"""
    (problem,) = problems(text)
    assert "loops.l1.logical-block-size: expected at least 4096" in problem
