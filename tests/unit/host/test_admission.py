"""The queue of guests that wait for this machine."""

from testbed.host.admission import Cores, most_at_once
from testbed.units import GIB
from tests.support.values import host


def test_a_command_starts_as_many_guests_at_once_as_cores_and_memory_allow() -> None:
    assert most_at_once(Cores.SHARED, host(cores=2), GIB) == 2
    assert most_at_once(Cores.SHARED, host(cores=8, free=6 * GIB), GIB) == 3
    assert most_at_once(Cores.SHARED, host(cores=8, free=GIB // 2), GIB) == 1
    assert most_at_once(Cores.IDLE, host(cores=2, free=6 * GIB), GIB) == 3
    assert most_at_once(Cores.IDLE, host(cores=2, free=600 * GIB), GIB) == 24
    assert most_at_once(Cores.ALONE, host(cores=8, free=600 * GIB), GIB) == 1


def test_a_guest_claims_cores_by_what_it_does() -> None:
    assert [cores.count(host(cores=8)) for cores in (Cores.SHARED, Cores.IDLE, Cores.ALONE)] == [1, 0, 8]
