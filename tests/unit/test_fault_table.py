"""Checks that the table of faults names existing tests, and covers all of a guest's life."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.cli.app import ERROR
from testbed.errors import GuestError, WireBroken
from testbed.guest.lifecycle import NEXT, Event, State
from tests.support import faults
from tests.support.places import Ended
from tests.support.qmp_proxy import Damage

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
GUEST = Path(faults.__file__).parents[1] / "guest"


@pytest.mark.parametrize("name", faults.FAULTS)
def test_each_fault_has_tests_that_compare_the_result_with_the_table(name: str) -> None:
    for test in faults.FAULTS[name].tests:
        file, _, function = test.partition("::")
        bodies = {
            node.name: ast.unparse(node)
            for node in ast.parse((GUEST / file).read_text()).body
            if isinstance(node, FUNCTION)
        }
        helpers = [body for called, body in bodies.items() if f"{called}(" in bodies[function]]
        assert any("with expect(" in body for body in (bodies[function], *helpers)), test


def test_each_error_has_the_exit_code_of_its_row() -> None:
    """Compares with the exit code by which `cli._fail` ends a command; some rows' tests raise the error in-process."""
    assert {fault.status for fault in faults.FAULTS.values() if fault.error is not None} == {ERROR}
    assert {fault.status for fault in faults.FAULTS.values() if fault.error is None} == {0, None}


def test_a_testbed_is_killed_in_every_state_but_the_last() -> None:
    assert set(faults.FAULTS["kill -9 of the testbed"].stages) == set(State) - {State.STOPPED}
    assert set(faults.NAMES) == {state.name for state in State} - {"STOPPED"}


def test_each_damage_of_the_monitor_is_a_fault() -> None:
    assert {damage.value for damage in Damage} <= faults.FAULTS.keys()


def test_a_result_that_differs_from_the_row_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "SSH dropped in a command"
    with faults.expect(name) as met:
        raise WireBroken("gone")
    assert str(met.error) == "gone"
    with pytest.raises(AssertionError, match="GuestError"), faults.expect(name):
        raise GuestError("another")
    with pytest.raises(AssertionError, match="None"), faults.expect(name):
        pass
    with pytest.raises(ValueError, match="no fault"), faults.expect(name):
        raise ValueError("no fault")
    with faults.expect(name) as met:
        met.by(Ended(2, "", 'testbed: gone\n{"event": "error", "code": "TB420"}\n'))
    with pytest.raises(AssertionError, match="TB400"), faults.expect(name) as met:
        met.by(Ended(2, "", '{"event": "error", "code": "TB400"}\n'))
    with faults.expect(name) as met:
        met.by(Ended(2, "", ""), coded=False)
    with pytest.raises(AssertionError, match="status=1"), faults.expect(name) as met:
        met.by(Ended(1, "", ""))
    monkeypatch.setitem(faults.FAULTS, name, replace(faults.FAULTS[name], within_s=0))
    with pytest.raises(AssertionError), faults.expect(name):
        raise WireBroken("late")


def test_every_state_in_which_a_guest_can_end_has_a_fault() -> None:
    assert (
        set(faults.ALIVE) == {state for state in State if (state, Event.ENDED) in NEXT} and State.READY in faults.ALIVE
    )
