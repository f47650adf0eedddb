"""Faults of disks: which are possible, and which blkdebug injects."""

import pytest

from testbed.hardware.faults import Fault

ERROR = Fault(operation="read", effect="EIO")


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
