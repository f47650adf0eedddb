"""What disks are told to be like: profiles, limits, delays and faults, and what QEMU is told of them."""

from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.hardware import commands as words
from testbed.hardware.faults import Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.profiles import PROFILES
from testbed.hardware.throttle import Throttle, from_qemu
from testbed.qemu import block_filters, blockdev
from testbed.qemu.block_filters import PLAIN, BlockFilters
from testbed.qemu.qmp import QmpCommand
from testbed.report.docs import profiles_markdown
from testbed.topology.disks import Disk, make_disk

ERROR = Fault(operation="read", effect="EIO")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
def test_qemu_accepts_each_profile_and_each_has_a_source(profile: object) -> None:
    assert isinstance(profile, type(PROFILES["hdd-7200"]))
    assert list(profile.throttle.mistakes()) == [] and profile.throttle != Throttle()
    assert list(profile.scaled(0.001).throttle.mistakes()) == []
    assert len(profile.source) > 20 and profile.title


def test_a_scale_makes_a_device_slower_in_every_way() -> None:
    slow = PROFILES["aws-gp3"].scaled(0.1)
    assert (slow.throttle.iops_total, slow.throttle.iops_size, slow.latency.read_us) == (300, 256 << 10, 10_000)
    burst = PROFILES["aws-gp2"].scaled(0.5).throttle
    assert (burst.iops_total_max, burst.iops_total_max_length) == (1500, 1800)


@pytest.mark.parametrize(
    ("limits", "said"),
    {
        "both": (
            {"iops-total": 1, "iops-read": 1},
            "expected iops-total or iops-read and iops-write, got both (QEMU refuses that)",
        ),
        "both bursts": (
            {"bps-read": 1, "bps-read-max": 2, "bps-total-max": 2},
            "expected bps-total-max or bps-read-max and bps-write-max, got both (QEMU refuses that)",
        ),
        "a burst below": (
            {"iops-read": 9, "iops-read-max": 8},
            "iops-read-max: expected at least iops-read, which is 9, got 8",
        ),
        "a burst of nothing": ({"bps-write-max": 8}, "bps-write-max: expected bps-write beside it, got none"),
        "a length of nothing": (
            {"bps-write": 8, "bps-write-max-length": 2},
            "bps-write-max-length: expected bps-write-max beside it, got none",
        ),
        "below zero": ({"iops-total": -1}, "iops-total: expected 0 to 1000000000000000, got -1"),
        "too much": ({"iops-total": 10**16}, "iops-total: expected 0 to 1000000000000000, got 10000000000000000"),
        "a size of nothing": ({"iops-size": 4096}, "iops-size: expected a limit of requests beside it, got none"),
    }.values(),
)
def test_limits_that_qemu_refuses_are_mistakes(limits: dict[str, int], said: str) -> None:
    assert said in list(from_qemu(limits).mistakes())


def test_commands_are_parsed() -> None:
    assert words.parse_throttle(["hdd-7200"]) == PROFILES["hdd-7200"].throttle
    assert words.parse_throttle(["iops-total=100", "bps-read=2M"]) == Throttle(iops_total=100, bps_read=2 << 20)
    assert words.parse_throttle(["off"]) == Throttle()
    assert words.parse_latency(["5ms"]) == Latency(read_us=5000, write_us=5000, flush_us=5000)
    assert words.parse_latency(["read=1.5ms", "jitter=200us"]) == Latency(read_us=1500, jitter_us=200)
    assert words.parse_latency(["both=1s"]).flush_us == 1_000_000
    assert words.parse_latency(["off"]) == NO_DELAY
    assert words.parse_faults(["read=EIO", "write=torn,count=3,range=1M-2M", "write=lost,probability=0.5"]) == (
        ERROR,
        Fault(operation="write", effect="torn", count=3, first=1 << 20, end=2 << 20),
        Fault(operation="write", effect="lost", probability=0.5),
    )
    assert words.parse_faults(["off"]) == ()


@pytest.mark.parametrize(
    ("read", "said", "message"),
    [
        (words.parse_throttle, ["hdd"], "expected off, a profile"),
        (words.parse_throttle, ["iops=1"], "expected one of iops-total"),
        (words.parse_throttle, ["iops-total=-1"], "iops-total: expected a number such as 100, got '-1'"),
        (words.parse_throttle, ["bps-read=20MB/s"], "bps-read: expected a number such as 20M, got '20MB/s'"),
        (
            words.parse_throttle,
            ["hdd-7200", "iops-total=5"],
            "expected hdd-7200 alone, or beside a scale, got hdd-7200 iops-total=5",
        ),
        (words.parse_throttle, ["iops-total=5", "off"], "expected off alone, or beside a scale, got iops-total=5 off"),
        (words.parse_throttle, ["iops-total=1", "iops-total=2"], "got 'iops-total' twice"),
        (words.parse_throttle, [], "got nothing"),
        (words.parse_faults, [], "got nothing"),
        (words.parse_latency, ["5"], "delay: expected a duration such as 5ms, got '5'"),
        (words.parse_latency, ["reed=5ms"], "expected one of both, read, write, flush, jitter, got 'reed'"),
        (
            words.parse_latency,
            ["jitter=1ms"],
            "jitter: expected a delay of both, read, write or flush beside it, got none",
        ),
        (words.parse_faults, ["read"], "expected a fault such as read=EIO, got 'read'"),
        (words.parse_faults, ["read=EIO,count=x"], "read=EIO,count=x: count: expected a whole number, got 'x'"),
        (
            words.parse_faults,
            ["read=EIO,probability=x"],
            "read=EIO,probability=x: probability: expected a number, got 'x'",
        ),
        (words.parse_faults, ["read=EIO,times=1"], "expected count, range, probability or seed, got 'times'"),
    ],
)
def test_a_wrong_command_has_a_message(read: object, said: list[str], message: str) -> None:
    assert callable(read)
    with pytest.raises(UsageError, match=message):
        read(said)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(operation="reed", effect="EIO"), "operation: expected one of read, write, flush, discard, got 'reed'"),
        (
            Fault(operation="read", effect="EPERM"),
            "effect: expected one of EIO, ENOSPC, ENOMEM, lost, torn, got 'EPERM'",
        ),
        (Fault(operation="read", effect="lost"), "effect: expected an error for a read"),
        (Fault(operation="discard", effect="torn"), "effect: expected lost or an error for a discard"),
        (Fault(operation="flush", effect="EIO", first=1), "range: expected none for a flush"),
        (Fault(operation="read", effect="EIO", first=2, end=1), "range: expected an end after its beginning"),
        (Fault(operation="read", effect="EIO", count=0), "count: expected 1 or more, got 0"),
        (Fault(operation="read", effect="EIO", probability=0.0), "probability: expected more than 0"),
    ],
)
def test_an_impossible_fault_is_a_mistake(fault: Fault, said: str) -> None:
    assert any(mistake.startswith(said) for mistake in fault.mistakes())


def test_blkdebug_gets_the_faults_that_it_supports() -> None:
    assert ERROR.in_qemu and ERROR.rules() == [{"event": "none", "iotype": "read", "errno": 5}]
    three = Fault(operation="write", effect="ENOSPC", count=3)
    assert three.in_qemu and three.rules() == [{"event": "none", "iotype": "write", "errno": 28, "once": True}] * 3
    for other in (
        {"effect": "lost"},
        {"probability": 0.5},
        {"first": 4096},
        {"count": 100_000},
        {"operation": "flush"},
    ):
        assert not Fault(**{"operation": "write", "effect": "EIO", **other}).in_qemu  # type: ignore[arg-type]  # a test's own words


def test_a_seed_is_parsed_and_formatted() -> None:
    said = ["write=torn,probability=0.5,seed=7"]
    (fault,) = words.parse_faults(said)
    assert fault.seed == 7 and words.format_faults([fault]) == said


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


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
def test_formatted_commands_are_parsed_to_the_same_values(profile: object) -> None:
    assert isinstance(profile, type(PROFILES["hdd-7200"]))
    assert words.parse_throttle(words.format_throttle(profile.throttle)) == profile.throttle
    assert words.parse_latency(words.format_latency(profile.latency)) == profile.latency


def test_formatted_faults_are_parsed_to_the_same_faults() -> None:
    for written in (
        ["read=EIO"],
        ["write=torn,count=3,range=1048576-2097152", "flush=ENOMEM,probability=0.25"],
        ["off"],
    ):
        assert words.format_faults(words.parse_faults(written)) == written


def test_the_page_of_profiles_matches_the_table() -> None:
    kept = Path(__file__).parents[3] / "docs" / "hardware.md"
    assert kept.read_text() == profiles_markdown(), "./tb profiles --markdown >docs/hardware.md"
