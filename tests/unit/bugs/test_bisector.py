"""The bisection of a bug: skipped kernels, wrong ends, and rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.bugs import repro
from testbed.bugs.bisect import Bisector
from testbed.bugs.bisect_search import BisectAnswer
from testbed.bugs.kernel_tries import KernelTries
from testbed.bugs.load import parse_mapping
from testbed.bugs.repro import ReproJob
from testbed.errors import GuestLost, UsageError
from testbed.report.bugs import results
from testbed.report.bugs.schema import MODELS
from testbed.store.kernels.kernel_files import KernelFiles
from tests.support.bug_runs import HIT, MISS, PLAIN, SHORT, job, kernel, tried


async def test_a_kernel_that_does_not_unpack_or_boot_is_skipped_and_the_answer_is_a_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("6.1", "6.2", "6.3", "6.4", "6.5")

    async def kernel_of(spec: str) -> KernelFiles:
        if spec == "6.2":
            raise UsageError("6.2: expected a Debian package: unexpected end of file")
        return kernel(spec, spec)

    async def on_kernel(job: ReproJob, files: KernelFiles, *, must_show: bool) -> KernelTries:
        if files.name == "6.3":
            raise GuestLost("template", "waiting for SSH", "panic on its console")
        return tried(files.name, *[HIT if files.name in ("6.4", "6.5") else MISS] * 5)

    monkeypatch.setattr(repro, "try_kernel", on_kernel)
    steps: list[str] = []
    bisector = Bisector(job(Path("/run")), kernel_of, 0.05, steps.append)
    found = await bisector.bisect(names, 0, 4, None)
    assert (found.good, found.bad, found.skipped, found.wrong) == (0, 3, (1, 2), "")
    said = results.bisect_document(job(Path("/run")), names, found, bisector, SHORT, ("vmlinuz.old (beside a kernel)",))
    assert said.reason == "it came after 6.1, with 6.4 at the latest; 6.2, 6.3 could not be tried"
    assert said.not_kernels == ["vmlinuz.old (beside a kernel)"]
    assert MODELS["bisect.json"].model_validate(said.as_json())
    whys = {asked.kernel: asked.why for asked in said.asked if asked.answer == "skip"}
    assert "unexpected end of file" in whys["6.2"] and "panic" in whys["6.3"]


async def test_a_bug_in_the_middle_only_is_told_with_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("6.1", "6.2", "6.3")

    async def kernel_of(spec: str) -> KernelFiles:
        return kernel(spec, spec)

    async def on_kernel(job: ReproJob, files: KernelFiles, *, must_show: bool) -> KernelTries:
        return tried(files.name, HIT if files.name == "6.2" else MISS)

    monkeypatch.setattr(repro, "try_kernel", on_kernel)
    bisector = Bisector(job(Path("/run")), kernel_of, 0.05, lambda _: None)
    said = results.bisect_document(job(Path("/run")), names, await bisector.bisect(names, 0, 2, 0.9), bisector, SHORT)
    assert (said.result, said.reason) == ("comes and goes", "it comes and goes: 6.1 good, 6.2 bad, 6.3 good")
    assert results.EXIT_CODES[said.result] == 3


async def test_without_a_stated_rate_one_kernel_is_asked_more_than_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    async def kernel_of(spec: str) -> KernelFiles:
        return kernel(spec, spec)

    async def on_kernel(job: ReproJob, files: KernelFiles, *, must_show: bool) -> KernelTries:
        asked.append(job.limits.tries)
        return tried(files.name, MISS)

    monkeypatch.setattr(repro, "try_kernel", on_kernel)
    for more in ({}, {"rate": 0.95}):
        bug = replace(job(Path("/run")), case=parse_mapping(PLAIN | more))
        assert await Bisector(bug, kernel_of, 0.05, lambda _: None).ask("6.1", 0.05) is BisectAnswer.GOOD
    assert asked == [4, 1]
