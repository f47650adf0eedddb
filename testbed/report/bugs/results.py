"""Makes `repro.json`, `reduce.json` and `bisect.json` of runs of bugs, and `suite.json` of runs of suites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.api import blktests
from testbed.api.blktests import TestResult
from testbed.bugs import conclusion, repro
from testbed.bugs.bisect import UNFINISHED, Bisector, BisectStep
from testbed.bugs.bisect_search import BisectRange
from testbed.bugs.conclusion import ReproResult
from testbed.bugs.kernel_tries import KernelTries, KernelVerdict
from testbed.bugs.outcome import Try, describe
from testbed.bugs.reduce import Reduced
from testbed.bugs.repro import ReproJob
from testbed.host.facts import Host
from testbed.report.bugs import schema
from testbed.report.bugs.schema import (
    Account,
    Asked,
    Attempt,
    Bisect,
    Bug,
    Kernel,
    Limits,
    Reduce,
    Repro,
    Step,
    SuiteKernel,
    SuiteTest,
)
from testbed.report.partial import Partial
from testbed.report.schema import ImageFacts
from testbed.store.image import Image
from testbed.store.kernels.kernel_files import KernelFiles

if TYPE_CHECKING:
    # Importing the API takes long, and reading results needs none of it.
    from testbed.api import Testbed
    from testbed.api.suites import Suite

# Exit codes of the verbs, and of `report` on their runs, by the result.
EXIT_CODES = {result.value: code for result, code in conclusion.EXIT_CODES.items()} | {
    "reduced": 0,
    "bisected": 0,
    "wrong ends": 2,
    # A run that ended early.
    UNFINISHED: 2,
    "comes and goes": 3,
    # One kernel, for `git bisect run`.
    "good": 0,
    "bad": 1,
    "skip": 125,
    # A foreign suite.
    "passed": 0,
    "failed": 1,
    "no result": 2,
    "skipped": 4,
}


# Measured values of one test of a suite; its guest chooses how many there are.
_MOST_MEASURED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What every run of a bug or suite has: its command, its duration, and how far it came, unless it is complete."""

    command: Sequence[str]
    took_s: float
    partial: Partial | None = None


def repro_document(job: ReproJob, tried: tuple[KernelTries, ...], run: RunInfo, not_asked: Sequence[str] = ()) -> Repro:
    """Make the document that is written as `repro.json`. `not_asked`: kernels that were not tried, because the guest of
    an earlier one is held."""
    verdict, reason = conclusion.conclude(tried, not_asked)
    result = verdict.value
    # Later tries can change every result but a hit on a kernel where there must be none.
    if run.partial is not None and verdict is not ReproResult.INVALID:
        result, reason = UNFINISHED, "; ".join(f"{tries.kernel.name}: {tries.words}" for tries in tried)
    return Repro.model_construct(
        **_of_bug("repro", job, run, result, reason),
        limits=Limits.model_construct(
            tries=job.limits.tries,
            timeout_s=job.limits.timeout_s,
            until=job.limits.until,
            jobs=job.limits.jobs or repro.default_jobs(job.factory.host, job.case),
        ),
        kernels=[Kernel.model_construct(**_kernel(tries), told_apart=_told_apart(tries, tried)) for tries in tried],
    )


def _told_apart(tries: KernelTries, tried: tuple[KernelTries, ...]) -> bool | None:
    """Return whether a clean kernel is told apart from those with the bug; None for other kernels."""
    is_clean = not tries.must_show and tries.verdict is KernelVerdict.ABSENT
    return conclusion.is_apart(tries, tried) if is_clean else None


def reduce_document(job: ReproJob, reduced: Reduced, smaller: str, run: RunInfo) -> Reduce:
    """Make the document that is written as `reduce.json`. `smaller`: the text of the reduced bug."""
    where = reduced.whole.kernel.name
    dropped = ", ".join(reduced.dropped) or ("nothing: each part is needed" if run.partial is None else "nothing")
    result, reason = "reduced", f"dropped: {dropped}"
    if reduced.plain is None:
        result, reason = "not reproduced", f"it does not show on {where} as it is: {reduced.whole.words}"
    if run.partial is not None:
        result, reason = UNFINISHED, f"dropped by then: {dropped}"
        if reduced.plain is None:
            reason = f"as it is on {where}: {reduced.whole.words}"
    return Reduce.model_construct(
        **_of_bug("reduce", job, run, result, reason),
        kernels=[Kernel.model_construct(**_kernel(reduced.whole))],
        steps=[Step.model_construct(**asdict(step)) for step in reduced.steps],
        dropped=list(reduced.dropped),
        guests=reduced.guests,
        smaller=smaller,
    )


def bisect_document(
    job: ReproJob,
    kernels: tuple[str, ...],
    bisect_range: BisectRange,
    bisector: Bisector,
    run: RunInfo,
    not_kernels: Sequence[str] = (),
) -> Bisect:
    """Make the document that is written as `bisect.json`. `kernels`: the list that was searched; `found`: of a partial
    run the ends that were named; `not_kernels`: other files of the list's folder."""
    result = "comes and goes" if bisect_range.wavers else "wrong ends" if bisect_range.wrong else "bisected"
    reason = _between(kernels, bisect_range, bisector)
    if run.partial is not None:
        result, reason = UNFINISHED, _answers(bisector)
    return Bisect.model_construct(
        **_of_bug("bisect", job, run, result, reason),
        kernels=list(kernels),
        not_kernels=list(not_kernels),
        good=kernels[bisect_range.good],
        bad=kernels[bisect_range.bad],
        skipped=[kernels[number] for number in bisect_range.skipped],
        wrong=bisect_range.wrong,
        rate=bisector.rate,
        asked=[_asked(asked) for asked in bisector.so_far],
        guests=sum(len(asked.tried.tries) for asked in bisector.so_far),
    )


def ask_document(job: ReproJob, kernel: str, bisector: Bisector, rate: float | None, run: RunInfo) -> Bisect:
    """Make the document that is written as `bisect.json` if one `kernel` was asked, for `git bisect run`."""
    answers = bisector.so_far
    result = UNFINISHED if run.partial is not None else answers[0].said
    return Bisect.model_construct(
        **_of_bug("bisect", job, run, result, _answers(bisector)),
        kernels=[kernel],
        rate=rate,
        asked=[_asked(asked) for asked in answers],
        guests=sum(len(asked.tried.tries) for asked in answers),
    )


def _answers(bisector: Bisector) -> str:
    return "; ".join(
        f"{asked.kernel}: {asked.tried.words}{f'; {asked.why}' if asked.why else ''}" for asked in bisector.so_far
    )


def _between(kernels: tuple[str, ...], bisect_range: BisectRange, bisector: Bisector) -> str:
    """Describe between which kernels the bug came or went, or why the ends are wrong."""
    if bisect_range.wrong:
        in_order = sorted(bisector.steps, key=lambda asked: kernels.index(asked.kernel))
        answers = ", ".join(f"{asked.kernel} {asked.said}" for asked in in_order)
        return f"{bisect_range.wrong}: {answers}" + ("" if bisect_range.wavers else "; choose other ends")
    good, bad = kernels[bisect_range.good], kernels[bisect_range.bad]
    came = bisect_range.good < bisect_range.bad
    text = (
        f"it came after {good}, with {bad} at the latest" if came else f"it went after {bad}, with {good} at the latest"
    )
    skipped = ", ".join(kernels[number] for number in bisect_range.skipped)
    return text + (f"; {skipped} could not be tried" if skipped else "")


def suite_document(
    testbed: Testbed, suite: Suite, kernel: KernelFiles, done: Sequence[TestResult], folder: Path, run: RunInfo
) -> schema.Suite:
    """Make the document that is written as `suite.json` in the run's `folder`."""
    counts = Counter(test.status for test in done)
    result = next((result for status, result in blktests.RESULTS.items() if counts[status]), UNFINISHED)
    if run.partial is not None and result != "failed":
        result = UNFINISHED
    reason = ", ".join(f"{counts[status]} {status.value}" for status in blktests.Status if counts[status])
    outcome: dict[str, Any] = {"result": result, "reason": reason}
    return schema.Suite.model_construct(
        **_head("suite", folder, testbed.host, testbed.image, run),
        **outcome,
        checkout=str(suite.root.absolute()),
        kernel=SuiteKernel.model_construct(
            name=kernel.name, release=kernel.release, origin=kernel.origin, sha256=kernel.sha256
        ),
        tests=[_test(test) for test in done],
    )


def _test(test: TestResult) -> SuiteTest:
    return SuiteTest.model_construct(
        name=test.name,
        group=test.test.partition("/")[0],
        status=test.status.value,
        reason=test.reason,
        runtime=test.runtime,
        details=list(test.details),
        measured=dict(islice(test.measured.items(), _MOST_MEASURED)),
        folder=f"guests/{blktests.results_folder(test.test)}",
    )


def _of_bug(what: str, job: ReproJob, run: RunInfo, result: str, reason: str) -> dict[str, Any]:
    """The fields of every document of a bug."""
    bug = job.case.bug
    signature = [condition.describe() for condition in bug.signature]
    return {
        **_head(what, job.folder, job.factory.host, job.factory.image, run),
        "bug": Bug.model_construct(summary=bug.summary, source=bug.source, signature=signature),
        "seed": job.seed,
        "result": result,
        "reason": reason,
    }


def _head(what: str, folder: Path, host: Host, image: Image, run: RunInfo) -> dict[str, Any]:
    """The fields of every document."""
    return {
        "version": 1,
        "what": what,
        "run": folder.name,
        "partial": run.partial,
        "command": list(run.command),
        "host": schema.Host.model_construct(
            kernel=host.kernel,
            cores=host.cores,
            memory_bytes=host.memory_bytes,
            qemu=host.qemu.version,
            qemu_identity=host.qemu.identity,
            accelerator=host.accelerator,
        ),
        "image": ImageFacts.model_construct(name=image.name, sha256=image.sha256),
        "took_s": round(run.took_s, 3),
    }


def _asked(asked: BisectStep) -> Asked:
    answer: dict[str, Any] = {"kernel": asked.kernel, "answer": asked.said, "why": asked.why}
    return Asked.model_construct(**answer, **_kernel(asked.tried))


def _kernel(tries: KernelTries) -> dict[str, Any]:
    """The fields of all tries on one kernel."""
    kernel, rate = tries.kernel, tries.rate
    return {
        "name": kernel.name,
        "release": kernel.release,
        "origin": kernel.origin,
        "sha256": kernel.sha256,
        "cached": kernel.folder.name,
        "must_show": tries.must_show,
        "verdict": tries.verdict.value,
        "hits": rate.hits,
        "tries": rate.tries,
        "troubles": tries.troubles,
        "rate": round(rate.share, 4),
        "interval": [round(bound, 4) for bound in tries.interval],
        "stopped": tries.stopped,
        "cut": tries.cut,
        "ended": tries.ended,
        "first_hit": tries.first_hit,
        "first_hit_s": None if tries.first_hit_s is None else round(tries.first_hit_s, 3),
        "median_hit_s": None if tries.median_hit_s is None else round(tries.median_hit_s, 3),
        "took_s": round(tries.took_s, 3),
        "attempts": [attempt(one) for one in tries.tries],
    }


def attempt(one: Try) -> Attempt:
    """Make the document of one try."""
    plain: dict[str, Any] = describe(one)
    accounts = [Account.model_construct(**account) for account in plain["disks"]]
    return Attempt.model_construct(**(plain | {"disks": accounts}))
