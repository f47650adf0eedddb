"""Profiles of disks, and the limits that QEMU accepts."""

from pathlib import Path

import pytest

from testbed.hardware.profiles import PROFILES
from testbed.hardware.throttle import Throttle, from_qemu
from testbed.report.docs import profiles_markdown


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


def test_the_page_of_profiles_matches_the_table() -> None:
    kept = Path(__file__).parents[3] / "docs" / "hardware.md"
    assert kept.read_text() == profiles_markdown(), "./tb profiles --markdown >docs/hardware.md"
