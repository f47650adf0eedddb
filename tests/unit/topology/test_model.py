"""The models of topology files: those that ship, and the published schema."""

from pathlib import Path

import pytest

from testbed.hardware.profiles import PROFILES
from testbed.qemu.blockdev import throttle_of
from testbed.topology import load_points, unused
from testbed.topology.load import parse
from testbed.topology.model import json_schema
from tests.support.topologies import GALLERY


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.yaml")), ids=lambda path: path.name)
def test_every_topology_that_ships_is_valid(path: Path) -> None:
    assert all(topology.guests for topology in load_points(path).values())


def test_the_default_topology_is_one_guest_with_both_kinds_of_disk_and_no_unused_parts() -> None:
    (guest,) = parse((GALLERY / "default.yaml").read_text(), "default.yaml").guests.values()
    assert {disk.type for disk in guest.disks.values()} == {"virtio-blk", "nvme"}
    assert list(unused.unused_parts(guest)) == [] and unused.without_unused(guest) == guest


def test_the_example_of_the_design_is_valid() -> None:
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


def test_the_published_schema_equals_that_of_the_models() -> None:
    assert (GALLERY / "schema.json").read_text() == json_schema()


def test_a_stack_of_thousands_of_devices_does_not_recurse() -> None:
    loops = "".join(
        f"      l{number}: {{backing: {f'l{number - 1}' if number else 'data'}}}\n" for number in range(1500)
    )
    head = "version: 1\nguests:\n  g0:\n    disks: {data: {type: nvme, size: 1G}}\n    loops:\n"
    for text in (loops, "".join(reversed(loops.splitlines(keepends=True)))):
        assert len(parse(head + text, "a.yaml").guests["g0"].loops) == 1500
