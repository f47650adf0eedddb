"""Event loops and clocks of the API: work in a thread, and timeouts that a debugger pauses."""

import asyncio
import threading
import time

import pytest

from testbed.api.event_loops import ThreadLoop
from testbed.api.pausable_clock import PausableClock
from testbed.errors import GuestError


async def test_patience_ends_but_not_while_it_is_held() -> None:
    patience = PausableClock()
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        await patience.within(asyncio.sleep(600), 0.01)
    assert await patience.within(asyncio.sleep(0, "done"), 5) == "done"
    patience.hold()
    held_at = patience.now()
    assert await patience.within(asyncio.sleep(0.05, "late"), 0.01) == "late"
    assert patience.now() == held_at
    stood = time.monotonic() - held_at
    patience.release()
    assert time.monotonic() - patience.now() >= stood


async def test_the_background_does_what_it_is_given_and_hands_back_what_comes() -> None:
    background = ThreadLoop()
    try:

        async def where() -> int:
            return threading.get_ident()

        assert await background.do(where()) != threading.get_ident()
        assert background.wait(where()) == await background.do(where())

        async def fails() -> None:
            raise GuestError("no")

        with pytest.raises(GuestError, match="no"):
            await background.do(fails())
        ended: list[str] = []
        began = threading.Event()

        async def stays() -> None:
            began.set()
            try:
                await asyncio.sleep(600)
            finally:
                ended.append("cancelled")

        waiting = asyncio.create_task(background.do(stays()))
        while not began.is_set():
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    finally:
        background.close()
    assert ended == ["cancelled"]
