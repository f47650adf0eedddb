"""Scenarios on real guests: repeated, on several kernels, and the scenario of docs/adding-a-scenario.md."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from testbed.guest.factory import GuestFactory
from testbed.scenarios import runner
from testbed.scenarios.catalogue import cases
from testbed.scenarios.runner import Job, Result
from testbed.scenarios.scenario import Case, Scenario
from testbed.scenarios.verdict import Evidence, Gap, Verdict
from testbed.topology import GuestModel
from tests.support import docs_pages


async def job(
    factory: GuestFactory, model: GuestModel, folder: Path, *chosen: Case, repeat: int = 1, **kernels: str
) -> Job:
    def nothing(*_: object) -> None:
        pass

    fetched = {side: await factory.kernel(spec) for side, spec in kernels.items()}
    return Job(
        factory=factory,
        cases=chosen,
        model=model,
        kernels=fetched,
        folder=folder,
        on_step=nothing,
        on_result=nothing,
        repeat=repeat,
    )


@pytest.mark.slow
async def test_the_scenario_that_the_docs_add_works_as_it_stands(
    factory: GuestFactory, model: GuestModel, tmp_path: Path
) -> None:
    (text,) = (block.text for block in docs_pages.blocks("adding-a-scenario") if block.language == "python")
    (tmp_path / "tail.py").write_text(text)
    spec = importlib.util.spec_from_file_location("tail", tmp_path / "tail.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tail: Scenario = module.TAIL
    case = Case(scenario=tail, point=tail.points[0])
    (result,) = await runner.run(
        await job(factory, model, tmp_path, case, base="debian-5.10", patched="debian-6.1"), runner.judge_as_pair
    )
    assert result.judgement.verdict is Verdict.PASS, result.judgement.reason


@pytest.mark.slow
async def test_attempts_run_each_on_its_own_guest_and_each_kernel_is_judged(
    factory: GuestFactory, model: GuestModel, tmp_path: Path
) -> None:
    case = cases()["many-cgroups/nvme/ext4/2"]
    expected = {"new": Gap.CLOSED}
    results = await runner.run(
        await job(factory, model, tmp_path, case, repeat=2, new="debian-6.1"), runner.judge_each(expected)
    )
    assert [result.attempt for result in results] == [1, 2]
    assert len({result.sides["new"].logs for result in results}) == 2
    for result in results:
        assert result.by_kernel["new"].verdict is Verdict.PASS, result.judgement.reason
        _every_byte_is_accounted_for(result)


def _every_byte_is_accounted_for(result: Result) -> None:
    for side in result.sides.values():
        assert isinstance(side.outcome, Evidence)
        assert side.outcome.balances and not [balance for balance in side.outcome.balances if balance.is_finding]
