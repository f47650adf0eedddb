import asyncio

import pytest

from testbed.guest import liveness
from testbed.guest.deadlines import deadlines
from testbed.guest.lifecycle import NEXT, Event, State, advance


def test_a_guest_gets_ready_in_order() -> None:
    state = State.PLANNED
    for event in (
        Event.SPAWNED,
        Event.MONITOR_CONNECTED,
        Event.AGENT_WAITING,
        Event.IDENTIFIED,
        Event.DEVICES_VERIFIED,
        Event.SSH_CONNECTED,
    ):
        state = advance(state, event)
    assert state is State.READY


def test_every_state_but_the_last_can_be_torn_down() -> None:
    for state in State:
        if state is not State.STOPPED:
            assert advance(state, Event.TORN_DOWN) is State.STOPPED


def test_a_guest_can_end_in_every_state_that_has_a_process() -> None:
    for state in (State.LAUNCHED, State.MONITORED, State.AWAKE, State.IDENTIFIED, State.VERIFIED, State.READY):
        assert advance(state, Event.ENDED) is State.LOST


def test_what_is_not_in_the_table_is_an_error() -> None:
    for state in State:
        for event in Event:
            if (state, event) not in NEXT:
                with pytest.raises(ValueError, match="cannot meet"):
                    advance(state, event)


def test_a_slow_host_gets_more_time_and_a_fast_one_no_less_than_the_reference() -> None:
    assert deadlines(17.0).boot_s == 2 * deadlines(8.5).boot_s
    assert deadlines(1.0) == deadlines(8.5)
    assert deadlines(None).boot_s > deadlines(8.5).boot_s


@pytest.mark.parametrize(("boot_s", "times"), [(8.5, 1.0), (12.75, 1.5), (2.0, 1.0), (None, 4.0)])
def test_each_wait_has_its_limit(boot_s: float | None, times: float) -> None:
    found = deadlines(boot_s)
    assert (found.boot_s, found.restore_s, found.ssh_s, found.command_s, found.stack_s, found.monitor_s) == (
        90 * times,
        30 * times,
        20 * times,
        60 * times,
        240 * times,
        20 * times,
    )


async def test_a_teardown_is_finished_even_if_cancelled_twice() -> None:
    going_on, done = asyncio.Event(), False

    async def take_down() -> None:
        nonlocal done
        await going_on.wait()
        done = True

    waiting = asyncio.create_task(liveness.wait_until_done(take_down()))
    for _ in range(2):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    going_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done
