"""The table of faults names tests that exist, and covers all of a guest's life."""

from pathlib import Path

import pytest

from testbed.lifecycle import NEXT, Event, State
from tests.guest import faults

GUEST = Path(faults.__file__).parent


@pytest.mark.parametrize("name", faults.FAULTS)
def test_the_tests_of_a_fault_exist(name: str) -> None:
    for test in faults.FAULTS[name].tests:
        file, _, function = test.partition("::")
        assert f"def {function}(" in (GUEST / file).read_text()


def test_every_state_in_which_a_guest_can_end_is_hurt() -> None:
    assert set(faults.ALIVE) == {state for state in State if (state, Event.ENDED) in NEXT} and State.READY in faults.ALIVE
