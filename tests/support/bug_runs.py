"""Runs of bugs as values: kernels, tries, jobs, and the documents of their results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from testbed.api.blktests import Status
from testbed.api.blktests import TestResult as SuiteOutcome
from testbed.api.suites import Suite
from testbed.bugs.bisect import BisectStep
from testbed.bugs.bisect_search import BisectAnswer, BisectRange
from testbed.bugs.kernel_tries import KernelTries
from testbed.bugs.load import parse_mapping
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.reduce import Reduced, Step
from testbed.bugs.repro import ReproJob, StopRule
from testbed.bugs.signature import End, Match
from testbed.report.bugs import results
from testbed.report.bugs.results import RunInfo
from testbed.report.bugs.schema import BugDocument
from testbed.report.bugs.schema import Suite as SuiteDocument
from testbed.report.partial import Partial
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import Series

# What a guest may say in order to be something else than text.
EVIL = "\x1b[2J]]></code><script>alert(1)</script> | # SKIP\nok 1 all"


def kernel(name: str, sha256: str) -> KernelFiles:
    return KernelFiles(
        name=name,
        series=Series.UNKNOWN,
        release=f"6.1-{sha256}",
        origin="a file",
        sha256=sha256,
        folder=Path(f"/cache/{sha256}"),
        early_modules=(),
        has_modules=False,
    )


def one(number: int, outcome: Outcome, logs: str = "k") -> Try:
    hit = outcome is Outcome.HIT
    return Try(
        number=number,
        seed=number,
        outcome=outcome,
        end=End.DONE,
        why=EVIL,
        match=Match(condition=0, seen=EVIL) if hit else None,
        ready_s=0.2,
        took_s=2.0,
        hit_after_s=1.5 if hit else None,
        status=0,
        console_bytes=5,
        findings=(),
        logs=Path(f"/run/guests/{logs}-{number}"),
    )


def tried(name: str, *outcomes: Outcome, must_show: bool = True, **more: Any) -> KernelTries:
    tries = tuple(one(number, outcome, name) for number, outcome in enumerate(outcomes, 1))
    first = 2.0 if Outcome.HIT in outcomes else None
    return KernelTries(
        kernel=kernel(name, name), must_show=must_show, tries=tries, took_s=3.0, first_hit_s=first, **more
    )


PLAIN = {"version": 1, "summary": f"a bug {EVIL}", "source": "a list", "script": "true", "signature": [{"output": "x"}]}


def job(folder: Path) -> ReproJob:
    qemu = SimpleNamespace(version="7.2", identity="q")
    host = SimpleNamespace(
        kernel="6.1", cores=2, memory_bytes=1 << 30, memory_free_bytes=1 << 30, accelerator="tcg", qemu=qemu
    )
    factory: Any = SimpleNamespace(host=host, image=SimpleNamespace(name="bookworm", sha256="ab" * 32))
    limits = StopRule(tries=3, timeout_s=9, jobs=1)
    return ReproJob(
        factory=factory, case=parse_mapping(PLAIN), limits=limits, seed=7, folder=folder, on_try=lambda *_: None
    )


# A complete run.
SHORT = RunInfo(command=["testbed"], took_s=1.0)


HIT, MISS, TROUBLE = Outcome.HIT, Outcome.MISS, Outcome.TROUBLE


def suite(folder: Path, run: RunInfo) -> SuiteDocument:
    testbed: Any = SimpleNamespace(host=job(folder).factory.host, image=job(folder).factory.image)
    ended = SuiteOutcome(test="loop/001", status=Status.PASS, runtime="1.2s")
    wanted = Suite(root=Path("/blktests"), tests=("loop/001", "loop/002"))
    return results.suite_document(testbed, wanted, kernel("bad", "bad"), (ended,), folder, run)


def documents(folder: Path, partial: Partial | None = None) -> dict[str, BugDocument]:
    shows, clean = tried("bad", HIT, TROUBLE, stopped=True, cut=1), tried("good", MISS, MISS, must_show=False)
    step = Step(what=f"without {EVIL}", kept=True, hits=3, tries=3, folder="candidate-1")
    reduced = Reduced(plain={}, dropped=("disks.data",), whole=shows, steps=(step,), guests=5)
    asked = [
        BisectStep(kernel="bad", answer=BisectAnswer.BAD, tried=shows),
        BisectStep(kernel="good", answer=BisectAnswer.GOOD, tried=clean),
    ]
    bisector: Any = SimpleNamespace(rate=0.5, steps=asked, so_far=asked)
    alone: Any = SimpleNamespace(rate=0.5, steps=asked[:1], so_far=asked[:1])
    info = RunInfo(command=["testbed", "verb", "--expect", "it's"], took_s=9.0, partial=partial)
    between = BisectRange(good=1, bad=0)
    return {
        "repro": results.repro_document(job(folder), (shows, clean), info),
        "reduce": results.reduce_document(job(folder), reduced, f"summary: {EVIL}\n", info),
        "bisect": results.bisect_document(job(folder), ("bad", "good"), between, bisector, info),
        "ask": results.ask_document(job(folder), "bad", alone, 0.5, info),
        "suite": suite(folder, info),
    }
