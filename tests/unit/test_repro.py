"""When tries stop: at a hit, after all, or for a rate; which are cut short, and which guest is held."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed import repro
from testbed.repro import Job, Limits, Tried, on_kernel
from testbed.signature import Match
from testbed.trial import Attempt, Outcome, Try
from tests.unit.test_bug_runs import HIT, MISS, TROUBLE, job, kernel, one

Answer = Callable[[Attempt], Awaitable[Outcome]]


@pytest.fixture
def trying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tries on a kernel whose guests do what `answer` says."""

    async def run(limits: Limits, answer: Answer, hold: Any = None) -> Tried:
        async def attempt(wanted: Attempt) -> Try:
            return one(wanted.number, await answer(wanted))

        async def prepare(*_: Any) -> None: ...

        monkeypatch.setattr(repro, "attempt", attempt)
        lab: Any = SimpleNamespace(prepare=prepare)
        wanted: Job = replace(job(Path("/run")), lab=lab, limits=limits, hold=hold)
        async with asyncio.timeout(10):
            return await on_kernel(wanted, kernel("k", "aa"), must_show=True)

    return run


async def never() -> None:
    await asyncio.Event().wait()


async def test_the_first_hit_cuts_short_what_runs_beside_it(trying: Any) -> None:
    async def answer(wanted: Attempt) -> Outcome:
        if wanted.number == 3:
            return HIT
        await never()
        return MISS

    found = await trying(Limits(tries=20, timeout_s=1, jobs=3), answer)
    assert [one.number for one in found.tries] == [3] and (found.stopped, found.cut) == (True, 2)
    assert found.rate.tries == 1 and found.interval[0] < 0.01


async def test_for_a_rate_slow_tries_are_awaited_and_may_undo_what_quick_ones_said(trying: Any) -> None:
    slow = asyncio.Event()

    async def answer(wanted: Attempt) -> Outcome:
        if wanted.number <= 4:
            await slow.wait()
            return MISS
        if wanted.number == 8:
            asyncio.get_running_loop().call_soon(slow.set)
        return HIT

    found = await trying(Limits(tries=40, timeout_s=1, jobs=5, until=0.5), answer)
    # Four hits in a row would do; the four misses that ran meanwhile count as well, so that it went on.
    assert [one.outcome for one in found.tries[:4]] == [MISS] * 4 and len(found.tries) > 12
    assert found.rate.low >= 0.5 and (found.stopped, found.cut) == (False, 0)


async def test_one_guest_is_held_and_the_others_go(trying: Any) -> None:
    held: list[int] = []

    async def hold(guest: Any, match: Match) -> None:
        held.append(guest)
        await asyncio.sleep(0)

    async def answer(wanted: Attempt) -> Outcome:
        assert wanted.hold is not None
        guest: Any = wanted.number
        await wanted.hold(guest, Match(condition=1, seen="x"))
        return HIT

    found = await trying(Limits(tries=20, timeout_s=1, jobs=3), answer, hold)
    assert held == [1] and [one.number for one in found.tries] == [1] and found.cut == 2


async def test_tries_that_come_to_nothing_end_it_after_three_in_a_row(trying: Any) -> None:
    outcomes = [TROUBLE, TROUBLE, MISS, TROUBLE, TROUBLE, TROUBLE, HIT]

    async def answer(wanted: Attempt) -> Outcome:
        return outcomes[wanted.number - 1]

    found = await trying(Limits(tries=20, timeout_s=1, jobs=1, every=True), answer)
    assert len(found.tries) == 6 and found.verdict is repro.Verdict.TROUBLE
