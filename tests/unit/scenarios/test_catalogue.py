from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.hardware.disk_kinds import DISK_KINDS
from testbed.report import docs
from testbed.scenarios.catalogue import MAIN, SCENARIOS, cases, select
from testbed.scenarios.claims.read import judge
from testbed.scenarios.claims.tmpfs_oom import parse_oom_kills
from testbed.scenarios.verdict import Gap
from testbed.topology import GuestModel

FULL = 32 << 20


@pytest.mark.parametrize(
    ("io_share", "owned", "resident", "disk_bytes", "claim"),
    [
        (1.0, FULL, FULL, FULL, Gap.CLOSED),
        (1.0, 2 * FULL, 2 * FULL, 2 * FULL, Gap.CLOSED),  # readahead
        (0.0, 0, FULL, FULL, Gap.OPEN),
        (1.0, 0, FULL, FULL, Gap.PARTIAL),  # the series without its mm patch
        (0.0, FULL, FULL, FULL, Gap.PARTIAL),
        (2.0, FULL, FULL, FULL, Gap.EXCESS),
        (0.5, FULL // 2, FULL, FULL, Gap.UNCLEAR),
        (1.0, FULL, 2 * FULL, 2 * FULL, Gap.UNCLEAR),
        (1.0, 2 * FULL, FULL, FULL, Gap.EXCESS),
        (1.0, 0, 0, FULL, Gap.UNCLEAR),
        (0.0, 0, FULL, 0, Gap.UNCLEAR),
        (0.0, 0, FULL, 12_000, Gap.UNCLEAR),
    ],
)
def test_a_read_is_charged_in_full_only_where_bytes_and_pages_agree(
    io_share: float, owned: int, resident: int, disk_bytes: int, claim: Gap
) -> None:
    assert judge(charged=int(io_share * disk_bytes), moved=disk_bytes, owned=owned, resident=resident).gap is claim


def test_only_oom_kill_lines_are_parsed() -> None:
    assert parse_oom_kills("oom_kill 0\noom_group_kill 7\n 256+0 records\noom_kill 1\noom_kill 12\n", 3, "g0") == (
        0,
        1,
        12,
    )


def test_every_scenario_states_its_claim_and_both_predictions() -> None:
    for name, scenario in SCENARIOS.items():
        assert name == scenario.name
        assert scenario.claim and scenario.what and scenario.source and set(scenario.patches) <= {1, 2, 3, 4}
        assert scenario.predicted_base != scenario.predicted_patched
        assert not scenario.claim.endswith("."), "the catalogue adds the full stop"


def test_every_point_has_a_name_of_its_own_and_a_known_disk() -> None:
    assert len(cases()) == sum(len(scenario.points) for scenario in SCENARIOS.values())
    assert {case.point.disk for case in cases().values()} <= {None, *DISK_KINDS}


def test_the_main_job_is_among_the_cases() -> None:
    assert [case.name for case in select(())] == list(MAIN)


def test_scenarios_are_chosen_by_name_or_prefix() -> None:
    assert len(select((), full=True)) == len(cases())
    assert [case.scenario.name for case in select((), quick=True)] == list(SCENARIOS)
    assert {case.name for case in select(("read/nvme",))} == {"read/nvme/ext4", "read/nvme/xfs", "read/nvme/btrfs"}
    assert [case.name for case in select(("read",), quick=True)] == ["read/virtio-blk/ext4"]
    assert [case.name for case in select(("gate", "oom-tmpfs"))] == ["oom-tmpfs", "gate"]
    with pytest.raises(UsageError, match="expected one of oom-tmpfs, gate"):
        select(("rea",))


def test_a_topology_without_the_disk_is_a_missing_need() -> None:
    why = cases()["read/nvme/ext4"].point.lacks(GuestModel())
    assert why is not None and "nvme" in why


def test_the_catalogue_in_the_docs_equals_the_generated_one() -> None:
    kept = Path(__file__).parents[3] / "docs" / "scenarios.md"
    assert kept.read_text() == docs.scenarios_markdown(tuple(SCENARIOS.values())), (
        "./tb scenarios --markdown >docs/scenarios.md"
    )
