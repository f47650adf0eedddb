"""Parts of a topology that scenarios do not use."""

from pathlib import Path

import pytest
from pydantic import Field

from testbed.errors import TopologyError
from testbed.topology import GuestModel, unused

# A part of each kind that scenarios do not use, and a line of the message for each.
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


def test_a_part_that_scenarios_do_not_use_is_an_error_with_its_place(tmp_path: Path) -> None:
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


def test_ignore_stack_drops_the_unused_parts_and_lists_them(tmp_path: Path) -> None:
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


def test_a_new_field_of_the_models_is_unused_until_it_is_listed() -> None:
    class Later(GuestModel):
        ramdisks: dict[str, int] = Field(default_factory=dict)

    assert list(unused.unused_parts(Later(ramdisks={"r": 1}))) == [
        (("ramdisks",), "scenarios build stacks of their own")
    ]
