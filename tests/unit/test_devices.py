from testbed import devices
from testbed.topology import Guest

DISKS = Guest.model_validate({"disks": {"data": {"type": "virtio-blk", "size": "1G"}, "fast": {"type": "nvme", "size": "1G"}}}).disks
# What a Debian 6.1 guest printed.
LISTING = """\
virtio-blk vda 254:0 1572864 0 tb-root
virtio-blk vdb 254:16 245760 1 tb-modules
virtio-blk vdc 254:32 2097152 0 tb-data
nvme nvme0n1 259:0 2097152 0 tb-fast
"""


def test_disks_are_found_by_serial() -> None:
    there = devices.by_name(DISKS, devices.parse(LISTING))
    assert (there["data"].path, there["data"].number) == ("/dev/vdc", "254:32")
    assert there["fast"].size_bytes == 1 << 30
    assert devices.differences(DISKS, devices.parse(LISTING)) == ()


def said(listing: str) -> str:
    return "\n".join(devices.differences(DISKS, devices.parse(listing)))


def test_every_difference_is_said() -> None:
    assert "disks.fast: expected a nvme disk with serial tb-fast, got tb-root, tb-modules, tb-data" in said(
        LISTING.replace("nvme nvme0n1 259:0 2097152 0 tb-fast\n", "")
    )
    assert "disks.data.size: expected 1073741824 bytes, got 1073741312 (/dev/vdc)" in said(
        LISTING.replace("2097152 0 tb-data", "2097151 0 tb-data")
    )
    assert "disks.data: expected it writable" in said(LISTING.replace("0 tb-data", "1 tb-data"))
    assert "disks.data.type: expected virtio-blk, got nvme" in said(LISTING.replace("virtio-blk vdc", "nvme vdc"))
    assert "/dev/vdd: expected no such disk, got one with serial 'other'" in said(LISTING + "virtio-blk vdd 254:48 8 0 other\n")
    assert "serial tb-data: expected once, got 2 disks with it" in said(LISTING + "virtio-blk vdd 254:48 2097152 0 tb-data\n")


def test_a_guest_that_answers_garbage_is_missing_its_disks() -> None:
    assert "got no disk" in said("\x1b[2J nonsense\n\n1 2 3 4 5 6 7\n")
