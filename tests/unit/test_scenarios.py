import pytest

from testbed.errors import UsageError
from testbed.hardware.disks import DISK_KINDS
from testbed.scenarios import SCENARIOS, select
from testbed.scenarios.oom import readings
from testbed.scenarios.read import _Reading, judge
from testbed.topology import Guest
from testbed.verdict import Charge

FULL = 32 << 20


def reading(read: int, file: int, disk: int = FULL) -> _Reading:
    return _Reading(cgroup="reader", read=read, file=file, disk=disk)


@pytest.mark.parametrize(
    ("seen", "claim"),
    [
        (reading(FULL, FULL), Charge.CHARGED),
        (reading(33816576, 33816576, 33816576), Charge.CHARGED),
        (reading(0, 0), Charge.BYPASSED),
        (reading(FULL, 0), Charge.UNCLEAR),
        (reading(0, FULL), Charge.UNCLEAR),
        (reading(FULL // 2, FULL // 2), Charge.UNCLEAR),
        (reading(FULL, FULL * 2), Charge.UNCLEAR),
        (reading(0, 0, 0), Charge.UNCLEAR),
    ],
)
def test_a_read_is_charged_only_where_bytes_and_pages_agree(seen: _Reading, claim: Charge) -> None:
    assert judge(seen) is claim


def test_oom_kills_are_read_and_nothing_else() -> None:
    assert readings("oom_kill 0\noom_group_kill 7\n 256+0 records\noom_kill 1\noom_kill 12\n") == (0, 1, 12)


def test_every_scenario_states_its_claim_and_both_predictions() -> None:
    for name, scenario in SCENARIOS.items():
        assert name == scenario.name
        assert scenario.claim and scenario.source and scenario.needs and set(scenario.patches) <= {1, 2, 3, 4}
        assert scenario.predicted_base != scenario.predicted_patched


def test_the_read_scenario_is_there_for_every_kind_of_disk() -> None:
    assert {name for name in SCENARIOS if name.startswith("read/")} == {f"read/{kind}" for kind in DISK_KINDS}


def test_scenarios_are_chosen_by_name_or_by_family() -> None:
    assert len(select(())) == len(SCENARIOS)
    assert [scenario.name for scenario in select(("read",))] == ["read/virtio-blk", "read/nvme"]
    assert [scenario.name for scenario in select(("gate", "oom-tmpfs"))] == ["oom-tmpfs", "gate"]
    with pytest.raises(UsageError, match="expected one of oom-tmpfs, gate"):
        select(("rea",))


def test_a_topology_without_the_disk_is_a_lack_and_not_a_failure() -> None:
    why = SCENARIOS["read/nvme"].lacks(Guest())
    assert why is not None and "nvme" in why
