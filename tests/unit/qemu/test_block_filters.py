"""Changes of the block nodes of a running guest's disk."""

from pathlib import Path

from testbed.hardware.faults import Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.qemu import block_filters, blockdev
from testbed.qemu.block_filters import PLAIN, BlockFilters
from testbed.qemu.qmp_command import QmpCommand
from testbed.topology.disks import Disk, make_disk

ERROR = Fault(operation="read", effect="EIO")


def test_a_disk_and_its_namespaces_can_be_named() -> None:
    disk = make_disk(type="nvme", size="1G")
    (kept,) = blockdev.plan_storage("d", disk, Path("/s"))
    late = BlockFilters(export=True, number=1)
    assert executed(block_filters.filter_changes("d", disk, kept, PLAIN, late)) == [
        "blockdev-add late-d",
        "blockdev-reopen file-d on late-d",
        "blockdev-del store-d",
    ]
    assert executed(block_filters.filter_changes("d", disk, kept, late, PLAIN)) == [
        "blockdev-add store-d",
        "blockdev-reopen file-d on store-d",
        "blockdev-del late-d",
    ]
    faulty = BlockFilters(errors=(ERROR,), number=2, export=True)
    assert executed(block_filters.filter_changes("d", disk, kept, late, faulty)) == [
        "blockdev-add faulty-d-2",
        "blockdev-reopen limited-d on faulty-d-2",
    ]
    other = BlockFilters(errors=(ERROR, ERROR), number=3, export=True)
    assert executed(block_filters.filter_changes("d", disk, kept, faulty, other)) == [
        "blockdev-add faulty-d-3",
        "blockdev-reopen limited-d on faulty-d-3",
        "blockdev-del faulty-d-2",
    ]
    assert executed(block_filters.filter_changes("d", disk, kept, other, late)) == [
        "blockdev-reopen limited-d on file-d",
        "blockdev-del faulty-d-3",
    ]
    assert block_filters.filter_changes("d", disk, kept, late, late) == ()


def test_the_image_below_an_overlay_is_delayed_as_the_overlay_is() -> None:
    disk = make_disk(type="nvme", size="1G", image="/images/a.qcow2")
    (kept,) = blockdev.plan_storage("d", disk, Path("/s"))
    late = BlockFilters(export=True, image=True)
    assert executed(block_filters.filter_changes("d", disk, kept, PLAIN, late)) == [
        "blockdev-add late-d",
        "blockdev-add late-image-d",
        "blockdev-reopen image-d on late-image-d",
        "blockdev-reopen file-d on late-d",
        "blockdev-del store-d",
    ]
    commands = block_filters.filter_changes("d", disk, kept, late, PLAIN)
    assert executed(commands) == [
        "blockdev-reopen image-d on origin-d",
        "blockdev-add store-d",
        "blockdev-reopen file-d on store-d",
        "blockdev-del late-d",
        "blockdev-del late-image-d",
    ]
    assert (
        commands[0].arguments["options"][0]["driver"] == "qcow2"
        and commands[2].arguments["options"][0]["backing"] == "image-d"
    )


def test_the_connections_that_commands_name_are_passed_first() -> None:
    disk = make_disk(type="nvme", size="1G", image="/images/a.qcow2")
    (kept,) = blockdev.plan_storage("d", disk, Path("/s"))
    late = BlockFilters(export=True, image=True)
    found = block_filters.export_connections("d", PLAIN, late)
    assert found == ("late-d", "late-image-d")
    servers = [
        command.arguments["server"]
        for command in block_filters.filter_changes("d", disk, kept, PLAIN, late)
        if "server" in command.arguments
    ]
    assert servers == [{"type": "fd", "str": name} for name in found]
    assert block_filters.export_connections("d", late, PLAIN) == block_filters.export_connections("d", late, late) == ()


def test_a_disk_without_a_file_has_the_export_below_its_limits_node() -> None:
    disk = make_disk(type="virtio-blk", size="1G", format="null-co", read_only=True)
    late = BlockFilters(export=True, number=1)
    commands = block_filters.filter_changes("d", disk, None, PLAIN, late)
    assert executed(commands) == ["blockdev-add late-d", "blockdev-reopen limited-d on late-d"]
    assert commands[0].arguments["read-only"] and commands[1].arguments["options"][0]["read-only"]
    faulty = BlockFilters(export=True, errors=(ERROR,), number=2)
    assert executed(block_filters.filter_changes("d", disk, None, faulty, BlockFilters(errors=(ERROR,), number=3))) == [
        "blockdev-add faulty-d-3",
        "blockdev-reopen limited-d on faulty-d-3",
        "blockdev-del faulty-d-2",
        "blockdev-del late-d",
    ]


def test_a_profile_sets_the_delay() -> None:
    def disk(**said: object) -> Disk:
        return make_disk(type="nvme", size="1G", **said)

    assert blockdev.latency_of(disk(profile="aws-gp3")).read_us == 1000
    assert blockdev.latency_of(disk(profile="aws-gp3", scale=0.5)).read_us == 2000
    assert blockdev.latency_of(disk(profile="aws-gp3", latency={"write": "3ms"})) == Latency(write_us=3000)
    assert blockdev.latency_of(disk()) == NO_DELAY
    assert blockdev.throttle_of(disk(profile="aws-gp3", scale=0.5)).iops_total == 1500


def executed(commands: tuple[QmpCommand, ...]) -> list[str]:
    found = []
    for command in commands:
        node = command.arguments.get("options", [command.arguments])[0]
        on = f" on {node['file']}" if command.execute == "blockdev-reopen" else ""
        found.append(f"{command.execute} {node['node-name']}{on}")
    return found
