"""What runs of bugs and of suites write into their folders: `repro.json`, `reduce.json`, `bisect.json` and `suite.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
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
from testbed.bugs.outcome import describe
from testbed.bugs.reduce import Reduced
from testbed.bugs.repro import ReproJob
from testbed.host.facts import Host
from testbed.report.partial import Partial
from testbed.store.image import Image
from testbed.store.kernels.kernel_files import KernelFiles

if TYPE_CHECKING:
    # Loading what guests are made of takes long, and reports need none.
    from testbed.api import Testbed
    from testbed.api.suites import Suite

# With which codes the verbs end, and `report` of what they have left, by the result.
EXIT_CODES = {result.value: code for result, code in conclusion.EXIT_CODES.items()} | {
    "reduced": 0,
    "bisected": 0,
    "wrong ends": 2,
    # Of a run that ended early.
    UNFINISHED: 2,
    "comes and goes": 3,
    # Of one kernel, for `git bisect run`.
    "good": 0,
    "bad": 1,
    "skip": 125,
    # Of somebody else's suite.
    "passed": 0,
    "failed": 1,
    "no result": 2,
    "skipped": 4,
}


# Of one test of a suite, whose guest chooses them.
_MOST_MEASURED = 1000


def repro_document(
    job: ReproJob,
    tried: tuple[KernelTries, ...],
    command: list[str],
    took_s: float,
    partial: Partial | None = None,
    not_asked: Sequence[str] = (),
) -> dict[str, Any]:
    """What `repro.json` says; `partial`: how far the run came, here and below, unless it is complete; `not_asked`: kernels after the one
    whose guest was held."""
    verdict, why = conclusion.conclude(tried, not_asked)
    result = verdict.value
    # Tries that were still to come can take back everything but a hit where there must be none.
    if partial is not None and verdict is not ReproResult.INVALID:
        result, why = UNFINISHED, "; ".join(f"{one.kernel.name}: {one.words}" for one in tried)
    return {
        **_of_bug("repro", job, command, took_s, partial),
        "result": result,
        "reason": why,
        "limits": {
            "tries": job.limits.tries,
            "timeout_s": job.limits.timeout_s,
            "until": job.limits.until,
            "jobs": job.limits.jobs or repro.default_jobs(job.factory.host, job.case),
        },
        "kernels": [_kernel(one) | {"told_apart": _told_apart(one, tried)} for one in tried],
    }


def _told_apart(one: KernelTries, tried: tuple[KernelTries, ...]) -> bool | None:
    """Of a kernel on which it must not show and was not seen."""
    return conclusion.is_apart(one, tried) if not one.must_show and one.verdict is KernelVerdict.ABSENT else None


def reduce_document(
    job: ReproJob, found: Reduced, smaller: str, command: list[str], took_s: float, partial: Partial | None = None
) -> dict[str, Any]:
    """What `reduce.json` says; `smaller`: the text of the bug that is left."""
    where = found.whole.kernel.name
    dropped = ", ".join(found.dropped) or ("nothing: each part is needed" if partial is None else "nothing")
    result, why = "reduced", f"dropped: {dropped}"
    if found.plain is None:
        result, why = "not reproduced", f"it does not show on {where} as it is: {found.whole.words}"
    if partial is not None:
        result, why = (
            UNFINISHED,
            f"dropped by then: {dropped}" if found.plain is not None else f"as it is on {where}: {found.whole.words}",
        )
    return {
        **_of_bug("reduce", job, command, took_s, partial),
        "result": result,
        "reason": why,
        "kernels": [_kernel(found.whole)],
        "steps": [asdict(one) for one in found.steps],
        "dropped": list(found.dropped),
        "guests": found.guests,
        "smaller": smaller,
    }


def bisect_document(
    job: ReproJob,
    every: tuple[str, ...],
    found: BisectRange,
    bisector: Bisector,
    command: list[str],
    took_s: float,
    partial: Partial | None = None,
    others: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What `bisect.json` says; `every`: the list that was walked; `found`: of a partial run its ends as they were named; `others`: files of
    the list's folder that are no kernels."""
    result, why = (
        "comes and goes" if found.wavers else "wrong ends" if found.wrong else "bisected",
        _between(every, found, bisector),
    )
    if partial is not None:
        result, why = UNFINISHED, _asked_by_then(bisector)
    return {
        **_of_bug("bisect", job, command, took_s, partial),
        "result": result,
        "reason": why,
        "kernels": list(every),
        "not_kernels": list(others),
        "good": every[found.good],
        "bad": every[found.bad],
        "skipped": [every[number] for number in found.skipped],
        "wrong": found.wrong,
        "rate": bisector.rate,
        "asked": [_asked(one) for one in bisector.so_far],
        "guests": sum(len(one.tried.tries) for one in bisector.so_far),
    }


def ask_document(
    job: ReproJob,
    kernel: str,
    bisector: Bisector,
    rate: float | None,
    command: list[str],
    took_s: float,
    partial: Partial | None = None,
) -> dict[str, Any]:
    """What `bisect.json` says where one `kernel` was asked, for `git bisect run`."""
    asked = bisector.so_far
    return {
        **_of_bug("bisect", job, command, took_s, partial),
        "result": UNFINISHED if partial is not None else asked[0].said,
        "reason": _asked_by_then(bisector),
        "kernels": [kernel],
        "rate": rate,
        "asked": [_asked(one) for one in asked],
        "guests": sum(len(one.tried.tries) for one in asked),
    }


def _asked_by_then(bisector: Bisector) -> str:
    return "; ".join(f"{one.kernel}: {one.tried.words}{f'; {one.why}' if one.why else ''}" for one in bisector.so_far)


def _between(every: tuple[str, ...], found: BisectRange, bisector: Bisector) -> str:
    if found.wrong:
        seen = sorted(bisector.steps, key=lambda one: every.index(one.kernel))
        answers = ", ".join(f"{one.kernel} {one.said}" for one in seen)
        return f"{found.wrong}: {answers}" + ("" if found.wavers else "; choose other ends")
    good, bad = every[found.good], every[found.bad]
    came = found.good < found.bad
    said = (
        f"it came after {good}, with {bad} at the latest" if came else f"it went after {bad}, with {good} at the latest"
    )
    return said + (
        f"; {', '.join(every[number] for number in found.skipped)} could not be tried" if found.skipped else ""
    )


def suite_document(
    testbed: Testbed,
    suite: Suite,
    kernel: KernelFiles,
    done: Sequence[TestResult],
    folder: Path,
    command: list[str],
    took_s: float,
    partial: Partial | None = None,
) -> dict[str, Any]:
    """What `suite.json` says, in the run's `folder`."""
    found = Counter(one.status for one in done)
    result = next((result for status, result in blktests.RESULTS.items() if found[status]), UNFINISHED)
    if partial is not None and result != "failed":
        result = UNFINISHED
    return {
        **_head("suite", folder, testbed.host, testbed.image, command, took_s, partial),
        "result": result,
        "reason": ", ".join(f"{found[status]} {status.value}" for status in blktests.Status if found[status]),
        "checkout": str(suite.root.absolute()),
        "kernel": {"name": kernel.name, "release": kernel.release, "origin": kernel.origin, "sha256": kernel.sha256},
        "tests": [
            {
                "name": one.name,
                "group": one.test.partition("/")[0],
                "status": one.status.value,
                "reason": one.reason,
                "runtime": one.runtime,
                "details": list(one.details),
                "measured": dict(islice(one.measured.items(), _MOST_MEASURED)),
                "folder": f"guests/{blktests.results_folder(one.test)}",
            }
            for one in done
        ],
    }


def _of_bug(what: str, job: ReproJob, command: list[str], took_s: float, partial: Partial | None) -> dict[str, Any]:
    bug = job.case.bug
    return {
        **_head(what, job.folder, job.factory.host, job.factory.image, command, took_s, partial),
        "bug": {"summary": bug.summary, "source": bug.source, "signature": [one.said() for one in bug.signature]},
        "seed": job.seed,
    }


def _head(
    what: str, folder: Path, host: Host, image: Image, command: list[str], took_s: float, partial: Partial | None
) -> dict[str, Any]:
    return {
        "version": 1,
        "what": what,
        "run": folder.name,
        "partial": None if partial is None else asdict(partial),
        "command": command,
        "host": {
            "kernel": host.kernel,
            "cores": host.cores,
            "memory_bytes": host.memory_bytes,
            "qemu": host.qemu.version,
            "qemu_identity": host.qemu.identity,
            "accelerator": host.accelerator,
        },
        "image": {"name": image.name, "sha256": image.sha256},
        "took_s": round(took_s, 3),
    }


def _asked(one: BisectStep) -> dict[str, Any]:
    return {"kernel": one.kernel, "answer": one.said, "why": one.why, **_kernel(one.tried)}


def _kernel(one: KernelTries) -> dict[str, Any]:
    kernel, rate = one.kernel, one.rate
    return {
        "name": kernel.name,
        "release": kernel.release,
        "origin": kernel.origin,
        "sha256": kernel.sha256,
        "cached": kernel.folder.name,
        "must_show": one.must_show,
        "verdict": one.verdict.value,
        "hits": rate.hits,
        "tries": rate.tries,
        "troubles": one.troubles,
        "rate": round(rate.share, 4),
        "interval": [round(bound, 4) for bound in one.interval],
        "stopped": one.stopped,
        "cut": one.cut,
        "ended": one.ended,
        "first_hit": one.first_hit,
        "first_hit_s": None if one.first_hit_s is None else round(one.first_hit_s, 3),
        "median_hit_s": None if one.median_hit_s is None else round(one.median_hit_s, 3),
        "took_s": round(one.took_s, 3),
        "attempts": [describe(attempt) for attempt in one.tries],
    }
