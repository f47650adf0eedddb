"""Which guests run at the same time, with a factory that starts none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from testbed.errors import GuestLost, ReadingError
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.host.admission import Cores
from testbed.scenarios import runner
from testbed.scenarios.runner import Job
from testbed.scenarios.scenario import Case, Point, Scenario
from testbed.scenarios.verdict import Evidence, Gap, Verdict
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from testbed.units import GIB
from tests.support.values import host


class Recorder:
    """A fake guest factory, whose guests exist only as names in `running`."""

    def __init__(self, cores: int) -> None:
        self.host = host(cores=cores, free=64 * GIB)
        self.running: list[str] = []
        self.beside: dict[str, int] = {}
        self.claimed: list[int] = []

    @contextlib.asynccontextmanager
    async def admitted(
        self, models: tuple[GuestModel, ...], who: str, *, cores: int, on_wait: Any
    ) -> AsyncIterator[None]:
        del models, who, on_wait
        self.claimed.append(cores)
        yield

    @contextlib.asynccontextmanager
    async def guest(
        self, name: str, model: GuestModel, kernel: Any, evidence: Path, on_state: Any
    ) -> AsyncIterator[Any]:
        del name, model, kernel, on_state

        async def script(*_: object, **__: object) -> SimpleNamespace:
            return SimpleNamespace(stdout="all asked\n")

        self.running.append(evidence.name)
        try:
            yield SimpleNamespace(
                console=SimpleNamespace(findings=[]), script=script, name=evidence.name, model=GuestModel(), disks={}
            )
        finally:
            self.running.remove(evidence.name)


def scenario(factory: Recorder, name: str, cores: Cores, *, raises: Exception | None = None) -> Case:
    async def steps(guest: Guest, point: Point) -> Evidence:
        del point
        for _ in range(20):
            factory.beside[guest.name] = max(factory.beside.get(guest.name, 0), len(factory.running) - 1)
            await asyncio.sleep(0)
        if raises is not None:
            raise raises
        return Evidence(claim=Gap.CLOSED, reason="so", measures=(), controls=())

    made = Scenario(
        name=name,
        claim="c",
        patches=(1,),
        predicted_base="a",
        predicted_patched="b",
        source="s",
        what="w",
        steps=steps,
        cores=cores,
    )
    return Case(scenario=made, point=Point())


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a run writes out of this machine."""
    monkeypatch.chdir(tmp_path)


def job(factory: Recorder, *chosen: Case, repeat: int = 1, folder: Path = Path("run")) -> Job:
    def nothing(*_: object) -> None:
        pass

    kernel = cast(KernelFiles, SimpleNamespace(name="k"))
    return Job(
        factory=cast(GuestFactory, factory),
        cases=chosen,
        model=GuestModel(),
        kernels={"kernel": kernel},
        folder=folder,
        on_step=nothing,
        on_result=nothing,
        repeat=repeat,
    )


CLOSED = runner.judge_each({"kernel": Gap.CLOSED})


async def test_a_scenario_that_measures_time_runs_alone() -> None:
    factory = Recorder(cores=4)
    chosen = [scenario(factory, f"timed-{n}", Cores.ALONE) for n in range(2)] + [
        scenario(factory, f"shared-{n}", Cores.SHARED) for n in range(6)
    ]
    results = await runner.run(job(factory, *chosen, scenario(factory, "waits", Cores.IDLE)), CLOSED)
    assert [factory.beside[f"timed-{n}-kernel"] for n in range(2)] == [0, 0]
    assert max(factory.beside.values()) == 4  # four that share the cores, and the one that waits
    assert [result.case.name for result in results] == [case.name for case in chosen] + ["waits"]


async def test_attempts_are_counted_and_kept_apart() -> None:
    factory = Recorder(cores=2)
    results = await runner.run(job(factory, scenario(factory, "one", Cores.SHARED), repeat=3), CLOSED)
    assert [result.attempt for result in results] == [1, 2, 3]
    assert len({result.sides["kernel"].logs for result in results}) == 3


async def test_a_lost_guest_is_infra_and_the_others_go_on() -> None:
    factory = Recorder(cores=2)
    gone = scenario(factory, "gone", Cores.SHARED, raises=GuestLost("g0", "ready", "panic"))
    results = await runner.run(job(factory, gone, scenario(factory, "kept", Cores.SHARED)), CLOSED)
    assert [result.judgement.verdict for result in results] == [Verdict.INFRA, Verdict.PASS]


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (ReadingError("guest g0: io.stat", "a number", "\u00b2"), "guest g0: io.stat: expected a number, got "),
        (
            ValueError("not enough values to unpack\x1b[2J"),
            "a mistake of the testbed: ValueError: not enough values to unpack, raised in ",
        ),
        (KeyError("data"), "a mistake of the testbed: KeyError: 'data', raised in test_runner.py:"),
        (
            ExceptionGroup("several", [IndexError("first"), ValueError("second")]),
            "a mistake of the testbed: IndexError: first",
        ),
        (OSError(28, "No space left on device", "/x/log"), "this machine: /x/log: No space left on device"),
    ],
)
async def test_an_error_in_a_case_affects_only_that_case(raised: Exception, why: str, tmp_path: Path) -> None:
    factory = Recorder(cores=2)
    cases = [scenario(factory, name, cores, raises=raised) for name, cores in (("a", Cores.SHARED), ("b", Cores.ALONE))]
    kept = [scenario(factory, "kept", Cores.SHARED), scenario(factory, "alone", Cores.ALONE)]
    results = await runner.run(job(factory, *cases, *kept, folder=tmp_path), CLOSED)
    assert [result.judgement.verdict for result in results] == [Verdict.INFRA] * 2 + [Verdict.PASS] * 2
    assert all(why in result.judgement.reason for result in results[:2]), results[0].judgement.reason
    mistaken = "mistake" in why
    assert (tmp_path / "guests/a-kernel/traceback.txt").exists() is mistaken
    assert ("see traceback.txt in a-kernel" in results[0].judgement.reason) is mistaken


async def test_a_topology_without_the_disk_starts_no_guest() -> None:
    factory = Recorder(cores=2)
    case = replace(scenario(factory, "disk", Cores.SHARED), point=Point(disk="nvme", filesystem="ext4"))
    (result,) = await runner.run(job(factory, case), CLOSED)
    assert result.judgement.verdict is Verdict.SKIP and factory.beside == {}
