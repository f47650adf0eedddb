import pytest

from testbed.guest import devices
from testbed.guest.setup import disk_facts
from testbed.topology import GuestModel

DISKS = GuestModel.model_validate(
    {"disks": {"data": {"type": "virtio-blk", "size": "1G"}, "fast": {"type": "nvme", "size": "1G"}}}
).disks
# What a Debian 6.1 guest printed.
ROOT = "virtio-blk,vda,254:0,1572864,0,74622d726f6f74,"
MODULES = "virtio-blk,vdb,254:16,245760,1,74622d6d6f64756c6573,"
DATA = "virtio-blk,vdc,254:32,2097152,0,74622d64617461,"
FAST = "nvme,nvme0n1,259:0,2097152,0,74622d6661737420202020202020202020202020,1"
LISTING = f"{ROOT} {MODULES} {DATA} {FAST}"


def test_disks_are_found_by_serial() -> None:
    there = devices.by_name(DISKS, devices.parse(LISTING))
    assert (there["data"].path, there["data"].number) == ("/dev/vdc", "254:32")
    assert there["fast"].size_bytes == 1 << 30
    assert devices.differences(DISKS, devices.parse(LISTING)) == ()


def said(listing: str) -> str:
    return "\n".join(devices.differences(DISKS, devices.parse(listing)))


def test_every_difference_is_reported() -> None:
    assert "disks.fast: expected a nvme disk with serial tb-fast, got tb-root, tb-modules, tb-data" in said(
        LISTING.replace(FAST, "")
    )
    assert "disks.data.size: expected 1073741824 bytes, got 1073741312 (/dev/vdc)" in said(
        LISTING.replace("254:32,2097152", "254:32,2097151")
    )
    assert "disks.data: expected it writable" in said(
        LISTING.replace("2097152,0,74622d64617461", "2097152,1,74622d64617461")
    )
    assert "disks.data.type: expected virtio-blk, got nvme" in said(LISTING.replace("virtio-blk,vdc", "nvme,vdc"))
    assert "/dev/vdd: expected no such disk, got one with serial 'other'" in said(
        f"{LISTING} virtio-blk,vdd,254:48,8,0,6f74686572,"
    )
    assert "serial tb-data: expected once, got 2 disks with it" in said(f"{LISTING} {DATA.replace('vdc', 'vdd')}")


@pytest.mark.parametrize(
    "listing",
    ["", "\x1b[2J nonsense\n\n1 2 3 4 5 6 7\n", "nvme,nvme0n1,259:0,\u0662,0,74", LISTING.replace("7462", "746")],
)
def test_garbage_in_the_list_of_disks_means_missing_disks(listing: str) -> None:
    assert "disks.data: expected a virtio-blk disk" in said(listing)


def test_each_disk_has_the_number_that_the_kernel_says_and_those_of_every_guest_a_name() -> None:
    assert devices.by_number(DISKS, devices.parse(LISTING)) == {
        "254:0": "root disk",
        "254:16": "modules disk",
        "254:32": "data",
        "259:0": "fast",
    }


def test_the_agent_is_asked_for_every_namespace() -> None:
    disks = GuestModel.model_validate(
        {"disks": {"fast": {"type": "nvme", "size": "1G", "namespaces": {"more": {"size": "1G"}}}}}
    ).disks
    assert devices.count_disks(disks) == 2
    assert devices.query_command(2)["count"] == "2" and "nvme" in devices.query_command(2)


def test_disk_properties_of_the_topology_are_read_back_but_no_defaults() -> None:
    zoned = {
        "type": "nvme",
        "size": "1G",
        "zoned": {"zone-size": "64M"},
        "namespaces": {"more": {"size": "1G", "zoned": {"zone-size": "64M"}}},
    }
    plain = {"type": "virtio-blk", "size": "1G", "queues": 4, "discard": False, "write-cache": False}
    disks = GuestModel.model_validate(
        {"disks": {"data": plain, "z": zoned, "bare": {"type": "nvme", "size": "1G"}}}
    ).disks
    there = {
        name: devices.Device(path=f"/dev/{path}", number="1:1", serial="", kind="", size_bytes=1, read_only=False)
        for name, path in {"data": "vdc", "z": "nvme0n1", "more": "nvme0n2", "bare": "nvme1n1"}.items()
    }
    found = {(fact.where, fact.file, fact.expected) for fact in disk_facts.expected_facts(disks, there, cpus=2)}
    assert found == {
        ("disks.data.queues", "/sys/block/vdc/mq", "2"),
        ("disks.data.discard", "/sys/block/vdc/queue/discard_max_bytes", "0"),
        ("disks.data.write-cache", "/sys/block/vdc/queue/write_cache", "through"),
        ("disks.z.zoned", "/sys/block/nvme0n1/queue/zoned", "host-managed"),
        ("disks.z.namespaces.more.logical-block-size", "/sys/block/nvme0n2/queue/logical_block_size", "512"),
        ("disks.z.namespaces.more.zoned", "/sys/block/nvme0n2/queue/zoned", "host-managed"),
    }
