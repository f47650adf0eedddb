"""Parsing and judging the trace of a loop's workers, recorded on a real guest."""

import pytest

from testbed.scenarios.claims import (
    workers,
)
from testbed.scenarios.verdict import Gap

G = Gap


TRACE = """\
      sh-200   [000] ..... 12.1: tracing_mark_write: == request-a
      dd-201   [000] ..... 12.2: block_rq_issue: 7,0 RS 65536 () 0 + 128 [dd]
      dd-201   [000] d..1. 12.2: workqueue_queue_work: work struct=00000000aa function=loop_workfn workqueue=loop0 req_cpu=8192 cpu=0
      dd-201   [000] d..1. 12.3: workqueue_queue_work: work struct=00000000aa function=loop_workfn workqueue=loop0 req_cpu=8192 cpu=0
      sh-200   [000] ..... 12.3: tracing_mark_write: == request-b
      dd-201   [000] d..1. 12.3: workqueue_queue_work: work struct=00000000cc function=loop_workfn workqueue=loop0 req_cpu=8192 cpu=0
      sh-200   [000] ..... 12.4: tracing_mark_write: ==
      dd-202   [000] d..1. 12.5: workqueue_queue_work: work struct=00000000bb function=loop_rootcg_workfn workqueue=loop0 req_cpu=8192 cpu=0
""".replace("==\n", "== \n")  # noqa: E501 - a recorded trace


ISSUED = "      dd-201   [000] ..... 12.2: block_rq_issue: 7,0 RS 65536 () 0 + 128 [dd]\n"


def queued(function: str, work: str) -> str:
    (line,) = (line for line in TRACE.splitlines(keepends=True) if "00000000cc" in line)
    return line.replace("00000000cc", work).replace("loop_workfn", function)


# Traces in which the first issuer's requests are also queued as a second work item.
ROOTS = TRACE.replace(ISSUED, ISSUED + queued("loop_rootcg_workfn", "00000000bb"))


FLUSHED = ROOTS.replace(ISSUED, ISSUED + ISSUED.replace(" RS ", " FF "))


TWO = TRACE.replace(ISSUED, ISSUED + queued("loop_workfn", "00000000dd"))


def test_the_trace_shows_the_work_of_each_issuers_requests() -> None:
    issuers = workers.parse_trace(TRACE)
    assert {issuer: sorted(seen.works) for issuer, seen in issuers.items()} == {
        "request-a": [("loop_workfn", "00000000aa")],
        "request-b": [("loop_workfn", "00000000cc")],
        "root": [("loop_rootcg_workfn", "00000000bb")],
    }
    assert issuers["request-a"].requests == {"RS": 1}
    again = TRACE.replace(ISSUED, ISSUED + ISSUED + ISSUED.replace(" RS ", " WS "))
    assert workers.parse_trace(again)["request-a"].requests == {"RS": 2, "WS": 1}
    assert workers.judge(issuers, threads=0) is workers.judge(issuers, threads=0, root_only=False) is G.CLOSED


@pytest.mark.parametrize(
    ("trace", "threads", "root_only", "gap"),
    [
        (TRACE, 0, False, G.CLOSED),
        (TRACE, 0, True, G.UNCLEAR),
        (TRACE.replace("loop_workfn", "loop_rootcg_workfn"), 0, True, G.CLOSED),
        (TRACE.replace("loop_workfn", "loop_rootcg_workfn"), 0, False, G.UNCLEAR),
        (TRACE.replace("00000000cc", "00000000aa"), 0, False, G.UNCLEAR),
        (TRACE.replace("function=loop_rootcg_workfn", "function=other"), 0, False, G.UNCLEAR),
        (TRACE + queued("loop_workfn", "00000000ee"), 0, False, G.UNCLEAR),
        (ROOTS, 0, False, G.UNCLEAR),
        (FLUSHED, 0, False, G.CLOSED),
        (TWO, 0, False, G.UNCLEAR),
        (TRACE.replace("function=loop", "function=other"), 1, False, G.OPEN),
        (TRACE.replace("function=loop", "function=other"), 0, False, G.UNCLEAR),
        (TRACE.replace("function=loop", "function=other"), 2, False, G.UNCLEAR),
    ],
)
def test_each_cgroup_needs_a_worker_and_the_root_its_own(trace: str, threads: int, root_only: bool, gap: Gap) -> None:
    assert workers.judge(workers.parse_trace(trace), threads=threads, root_only=root_only) is gap


@pytest.mark.parametrize("issuer", ["request-a", "request-b", "root"])
def test_a_trace_without_one_of_the_issuers_is_inconclusive(issuer: str) -> None:
    issuers = workers.parse_trace(TRACE)
    del issuers[issuer]
    assert workers.judge(issuers, threads=0) is G.UNCLEAR
    assert workers.judge(issuers, threads=0, root_only=True) is G.UNCLEAR
