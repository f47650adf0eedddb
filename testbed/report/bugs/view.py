"""Prepares the results of `repro`, `reduce`, `bisect` and `suite` for readers: the result, tables, and tries. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from testbed.api.blktests import RESULTS, Status
from testbed.report import schema
from testbed.report.bugs import tables as repro
from testbed.report.bugs.schema import Attempt, Bisect, BugDocument, Kernel, Reduce, Repro, Suite, SuiteKernel
from testbed.report.schema import KEYS_OF_CASES, Case, Document, HostFacts, Measure, Predicted, Side, VerdictName

# The verdict, as runs of scenarios have it, by the result of a run of a bug or suite.
VERDICTS: dict[str, VerdictName] = {
    "reproduced": "PASS",
    "reduced": "PASS",
    "bisected": "PASS",
    "not reproduced": "FAIL",
    "invalid": "INVALID",
    "not told apart": "INVALID",
    "wrong ends": "INVALID",
    "comes and goes": "INVALID",
    "good": "PASS",
    "bad": "FAIL",
    "skip": "INFRA",
    "trouble": "INFRA",
    "passed": "PASS",
    "failed": "FAIL",
    "no result": "INFRA",
    "skipped": "SKIP",
    "unfinished": "INFRA",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`folders`: the logs of each row's guests, relative to the run's folder; empty if rows have none of their own."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """All tries on one kernel."""

    kernel: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A run of any kind. `verdict`: as runs of scenarios have it. `smaller`: the text of the reduced bug, or ""."""

    run: str
    title: str
    verdict: str
    result: str
    reason: str
    command: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    tries: tuple[Tries, ...]
    smaller: str = ""


def bug_view(document: BugDocument) -> View:
    """Prepare a run for a reader."""
    title, facts = _suite_title(document) if isinstance(document, Suite) else _bug_title(document)
    return View(
        run=document.run,
        title=title,
        verdict=VERDICTS[document.result],
        result=bug_result(document),
        reason=reason_of(document),
        command=shlex.join(["./tb", *document.command[1:]]),
        facts=(*facts, *_facts(document)),
        tables=_tables(document),
        tries=tuple(_tries(kernel) for kernel in _tried(document)),
        smaller=document.smaller if isinstance(document, Reduce) else "",
    )


def bug_result(document: BugDocument) -> str:
    """Return the result, and that it is partial unless the result itself says so."""
    partial = document.partial is not None and document.result != "unfinished"
    return f"{document.result}, partial" if partial else document.result


def reason_of(document: BugDocument) -> str:
    """Return the reason of the result; of a partial run first how far it came."""
    return "; ".join(text for text in (str(document.partial or ""), document.reason) if text)


def as_results_document(document: Repro | Suite) -> Document:
    """Convert to the form of `results.json`, for writers of JUnit and KTAP: a reproduction becomes one case, judged on
    each kernel alone; each test of a suite becomes a case."""
    kernels: Sequence[Kernel | SuiteKernel] = [document.kernel] if isinstance(document, Suite) else document.kernels
    host = document.host
    return Document.model_construct(
        version=1,
        run=document.run,
        verdict=VERDICTS[document.result],
        partial=document.partial,
        command=document.command,
        host=HostFacts.model_construct(
            kernel=host.kernel,
            cores=host.cores,
            memory_bytes=host.memory_bytes,
            qemu=host.qemu,
            accelerator="kvm" if host.accelerator == "kvm" else "tcg",
        ),
        image=document.image,
        kernels={_key(kernel.name): _kernel(kernel) for kernel in kernels},
        took_s=document.took_s,
        guest_seconds=0.0,
        scenarios=_suite_cases(document) if isinstance(document, Suite) else [_repro_case(document)],
    )


def _kernel(kernel: Kernel | SuiteKernel) -> schema.Kernel:
    return schema.Kernel.model_construct(
        name=kernel.name, release=kernel.release, origin=kernel.origin, sha256=kernel.sha256, series="unknown"
    )


def _key(kernel: str) -> str:
    """Return the key of a kernel beside the other keys of a case."""
    return f"kernel {kernel}" if kernel in KEYS_OF_CASES else kernel


def _case(*, name: str, scenario: str, claim: str, verdict: VerdictName, reason: str, sides: dict[str, Any]) -> Case:
    return Case.model_construct(
        name=name,
        scenario=scenario,
        claim=claim,
        patches=[],
        predicted=Predicted.model_construct(base="", patched=""),
        source="",
        verdict=verdict,
        reason=reason,
        **sides,
    )


def _repro_case(document: Repro) -> Case:
    return _case(
        name=document.bug.summary,
        scenario="repro",
        claim=f"The signature shows where it must, and only there: {'; or '.join(document.bug.signature)}",
        verdict=VERDICTS[document.result],
        reason=reason_of(document),
        sides={_key(kernel.name): _kernel_side(kernel) for kernel in document.kernels},
    )


def _suite_cases(document: Suite) -> list[Case]:
    cases = []
    for test in document.tests:
        verdict = VERDICTS[RESULTS[Status(test.status)]]
        reason = f"{test.status}: {test.reason}" if test.reason else test.status
        side = _side(took_s=_seconds(test.runtime), evidence=test.folder, verdict=verdict, reason=reason)
        cases.append(
            _case(
                name=test.name,
                scenario=test.group,
                claim=f"{test.name} of {document.checkout} passes",
                verdict=verdict,
                reason=reason,
                sides={_key(document.kernel.name): side},
            )
        )
    return cases


def _seconds(runtime: str) -> float:
    """Parse the duration that a test reports, such as 1.2s; 0 if it is another text."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s", runtime)
    return float(match[1]) if match else 0.0


def _side(
    *, took_s: float, evidence: str, verdict: VerdictName, reason: str, measures: dict[str, Measure] | None = None
) -> Side:
    return Side.model_construct(
        took_s=took_s,
        guest_ready_after_s=0.0,
        evidence=evidence,
        console=[],
        claim=None,
        reason=reason,
        measures=measures or {},
        controls=[],
        balances=[],
        verdict=verdict,
        judgement=reason,
    )


def _kernel_side(kernel: Kernel) -> Side:
    reason = (
        f"expected that it {'shows' if kernel.must_show else 'does not show'}; "
        f"it showed in {' '.join(repro.rate(kernel).split())}"
    )
    if ended := repro.endings(kernel):
        reason += f"; {ended}"
    counts = {"hits": kernel.hits, "tries": kernel.tries, "without a result": kernel.troubles}
    first = next((attempt.evidence for attempt in kernel.attempts), "")
    return _side(
        took_s=kernel.took_s,
        evidence=f"guests/{first}",
        verdict=_kernel_verdict(kernel),
        reason=reason,
        measures={
            name: Measure.model_construct(value=count, unit="tries", source="repro.json")
            for name, count in counts.items()
        },
    )


def _kernel_verdict(kernel: Kernel) -> VerdictName:
    """Return whether the bug shows, or does not, as it must on this kernel."""
    if kernel.verdict == "trouble":
        return "INFRA"
    if kernel.told_apart is False:
        return "INVALID"
    if (kernel.verdict == "shows") is kernel.must_show:
        return "PASS"
    return "FAIL" if kernel.must_show else "INVALID"


Facts = tuple[tuple[str, str], ...]


def _bug_title(document: Repro | Reduce | Bisect) -> tuple[str, Facts]:
    """Return the title, and facts that only bugs have."""
    bug = document.bug
    return bug.summary, (
        ("Source", bug.source),
        ("Signature", "; or ".join(bug.signature)),
        ("Seed", str(document.seed)),
    )


def _suite_title(document: Suite) -> tuple[str, Facts]:
    kernel = document.kernel
    return f"Suite {document.checkout} on {kernel.name}", (
        ("Kernel", f"{kernel.name} ({kernel.release}), {kernel.origin}"),
    )


def _facts(document: BugDocument) -> list[tuple[str, str]]:
    host, image = document.host, document.image
    return [
        ("Took", f"{document.took_s:.0f} s"),
        ("QEMU", f"{host.qemu} ({host.accelerator}) on {host.cores} cores with Linux {host.kernel}"),
        ("Guest image", f"{image.name} {image.sha256[:16]}"),
    ]


def _tables(document: BugDocument) -> tuple[Table, ...]:
    if isinstance(document, Repro):
        rows = tuple(repro.row(kernel) for kernel in document.kernels)
        return (Table(caption="How often the signature showed on each kernel", head=repro.HEAD, rows=rows),)
    if isinstance(document, Reduce):
        return _reduce_tables(document)
    return (_bisect_table(document) if isinstance(document, Bisect) else _suite_table(document),)


def _reduce_tables(document: Reduce) -> tuple[Table, ...]:
    (whole,) = document.kernels
    steps = tuple(
        (step.what, "yes" if step.kept else "no", f"{step.hits} of {step.tries}", step.why) for step in document.steps
    )
    return (
        Table(caption="The bug as it was", head=repro.HEAD, rows=(repro.row(whole),)),
        Table(
            caption="What was tried without, and whether it still showed as often",
            head=("candidate", "shows as often", "hits", "why"),
            rows=steps,
            folders=tuple(step.folder for step in document.steps),
        ),
    )


def _bisect_table(document: Bisect) -> Table:
    return Table(
        caption="The kernels that were asked, in turn",
        head=("kernel", "release", "answer", repro.RATE, "why"),
        rows=tuple(
            (asked.kernel, asked.release, asked.answer, repro.rate(asked), asked.why) for asked in document.asked
        ),
    )


def _suite_table(document: Suite) -> Table:
    return Table(
        caption="The tests, in their order",
        head=("test", "status", "time", "reason"),
        rows=tuple(
            (test.name, test.status, test.runtime, "\n".join((test.reason, *test.details)).strip())
            for test in document.tests
        ),
        folders=tuple(test.folder for test in document.tests),
    )


def _tried(document: BugDocument) -> Sequence[Kernel]:
    """Return the kernels whose tries are shown one by one."""
    if isinstance(document, Suite):
        return ()
    return document.asked if isinstance(document, Bisect) else document.kernels


def _tries(kernel: Kernel) -> Tries:
    return Tries(kernel=f"{kernel.name} ({kernel.release})", attempts=tuple(kernel.attempts))
