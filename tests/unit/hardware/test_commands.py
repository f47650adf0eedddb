"""Commands for disks and the machine: parsed and formatted."""

import pytest

from testbed.errors import UsageError
from testbed.hardware import commands
from testbed.hardware.faults import Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.profiles import PROFILES
from testbed.hardware.throttle import Throttle

ERROR = Fault(operation="read", effect="EIO")


def test_commands_are_parsed() -> None:
    assert commands.parse_throttle(["hdd-7200"]) == PROFILES["hdd-7200"].throttle
    assert commands.parse_throttle(["iops-total=100", "bps-read=2M"]) == Throttle(iops_total=100, bps_read=2 << 20)
    assert commands.parse_throttle(["off"]) == Throttle()
    assert commands.parse_latency(["5ms"]) == Latency(read_us=5000, write_us=5000, flush_us=5000)
    assert commands.parse_latency(["read=1.5ms", "jitter=200us"]) == Latency(read_us=1500, jitter_us=200)
    assert commands.parse_latency(["both=1s"]).flush_us == 1_000_000
    assert commands.parse_latency(["off"]) == NO_DELAY
    assert commands.parse_faults(["read=EIO", "write=torn,count=3,range=1M-2M", "write=lost,probability=0.5"]) == (
        ERROR,
        Fault(operation="write", effect="torn", count=3, first=1 << 20, end=2 << 20),
        Fault(operation="write", effect="lost", probability=0.5),
    )
    assert commands.parse_faults(["off"]) == ()


@pytest.mark.parametrize(
    ("read", "said", "message"),
    [
        (commands.parse_throttle, ["hdd"], "expected off, a profile"),
        (commands.parse_throttle, ["iops=1"], "expected one of iops-total"),
        (commands.parse_throttle, ["iops-total=-1"], "iops-total: expected a number such as 100, got '-1'"),
        (commands.parse_throttle, ["bps-read=20MB/s"], "bps-read: expected a number such as 20M, got '20MB/s'"),
        (
            commands.parse_throttle,
            ["hdd-7200", "iops-total=5"],
            "expected hdd-7200 alone, or beside a scale, got hdd-7200 iops-total=5",
        ),
        (
            commands.parse_throttle,
            ["iops-total=5", "off"],
            "expected off alone, or beside a scale, got iops-total=5 off",
        ),
        (commands.parse_throttle, ["iops-total=1", "iops-total=2"], "got 'iops-total' twice"),
        (commands.parse_throttle, [], "got nothing"),
        (commands.parse_faults, [], "got nothing"),
        (commands.parse_latency, ["5"], "delay: expected a duration such as 5ms, got '5'"),
        (commands.parse_latency, ["reed=5ms"], "expected one of both, read, write, flush, jitter, got 'reed'"),
        (
            commands.parse_latency,
            ["jitter=1ms"],
            "jitter: expected a delay of both, read, write or flush beside it, got none",
        ),
        (commands.parse_faults, ["read"], "expected a fault such as read=EIO, got 'read'"),
        (commands.parse_faults, ["read=EIO,count=x"], "read=EIO,count=x: count: expected a whole number, got 'x'"),
        (
            commands.parse_faults,
            ["read=EIO,probability=x"],
            "read=EIO,probability=x: probability: expected a number, got 'x'",
        ),
        (commands.parse_faults, ["read=EIO,times=1"], "expected count, range, probability or seed, got 'times'"),
    ],
)
def test_a_wrong_command_has_a_message(read: object, said: list[str], message: str) -> None:
    assert callable(read)
    with pytest.raises(UsageError, match=message):
        read(said)


def test_a_seed_is_parsed_and_formatted() -> None:
    said = ["write=torn,probability=0.5,seed=7"]
    (fault,) = commands.parse_faults(said)
    assert fault.seed == 7 and commands.format_faults([fault]) == said


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
def test_formatted_commands_are_parsed_to_the_same_values(profile: object) -> None:
    assert isinstance(profile, type(PROFILES["hdd-7200"]))
    assert commands.parse_throttle(commands.format_throttle(profile.throttle)) == profile.throttle
    assert commands.parse_latency(commands.format_latency(profile.latency)) == profile.latency


def test_formatted_faults_are_parsed_to_the_same_faults() -> None:
    for written in (
        ["read=EIO"],
        ["write=torn,count=3,range=1048576-2097152", "flush=ENOMEM,probability=0.25"],
        ["off"],
    ):
        assert commands.format_faults(commands.parse_faults(written)) == written
