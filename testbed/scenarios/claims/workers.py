"""Which worker handles a request of a loop: each cgroup has one, and the root's handles the other requests (patch 1).

The guest's trace shows it: `workqueue_queue_work` with the function and address of the work, and `block_rq_issue` for
requests that reached the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.guest.guest import Guest
from testbed.guest.setup import survey
from testbed.guest.shell_functions import ENTER, printed_number
from testbed.regex import compile_linear
from testbed.scenarios.controls import usual_read_controls
from testbed.scenarios.harness import FRESH, Harness, open_harness
from testbed.scenarios.scenario import COMMON_NEEDS, Need, Point, Scenario, on_each_disk
from testbed.scenarios.verdict import Control, Evidence, Gap, Measure
from testbed.units import MIB

# $1: loop. Two cgroups and the root run COMMAND one after the other, each at its own offset `$at`.
_TRACED = (
    ENTER
    + """\
trace=/sys/kernel/tracing
WARM
SURVEY
printf "%s\\n" workqueue:workqueue_queue_work block:block_rq_issue >$trace/set_event || exit 1
at=0
for cgroup in request-a request-b ""; do
    [ -z "$cgroup" ] || mkdir "/sys/fs/cgroup/$cgroup" || exit 1
    echo "== $cgroup" >$trace/trace_marker
    (enter "$cgroup" || exit 1; exec >&2; exec COMMAND) || exit 1
    at=$((at + 2097152))
done
echo >$trace/set_event
grep -E "tracing_mark_write|function=loop|block_rq_issue: 7,0 " $trace/trace || :
echo "events $(grep -c workqueue_queue_work $trace/trace)"
echo "threads $(ps -eo comm= | grep -c "^${1##*/}$")"
""".replace("WARM", FRESH).replace("SURVEY", survey.TAKE)
)


_MARKED = compile_linear(r"tracing_mark_write: == (\S*)")
_WORK = compile_linear(r"work struct=(\S+) function=(loop_\w+)")
_REQUEST = compile_linear(r"block_rq_issue: 7,0 (\w+) ")


@dataclass(frozen=True, slots=True)
class Traced:
    """What became of one issuer's requests.

    `works`: (function, work struct) of the loop's work. `requests`: the number of each kind that reached the loop.
    """

    works: frozenset[tuple[str, str]]
    requests: dict[str, int]


def parse_trace(trace: str) -> dict[str, Traced]:
    """Parse the trace of `_TRACED`; the results are by issuer (`root` for the root)."""
    by_issuer: dict[str, Traced] = {}
    issuer = ""
    for line in trace.splitlines():
        if marked := _MARKED.search(line):
            issuer = marked[1] or "root"
            by_issuer[issuer] = Traced(frozenset(), {})
        elif (work := _WORK.search(line)) and issuer:
            by_issuer[issuer] = Traced(by_issuer[issuer].works | {(work[2], work[1])}, by_issuer[issuer].requests)
        elif (request := _REQUEST.search(line)) and issuer:
            by_issuer[issuer].requests[request[1]] = by_issuer[issuer].requests.get(request[1], 0) + 1
    return by_issuer


async def _trace(harness: Harness, command: str) -> str:
    return (await harness.guest.script(_TRACED.replace("COMMAND", command), harness.loop)).stdout


def judge(by_issuer: dict[str, Traced], *, threads: int, root_only: bool = False) -> Gap:
    """Judge which workers handled the requests.

    CLOSED: a worker for each cgroup, the root's for the root (or for all, if `root_only`). OPEN: one thread, and no
    work of the loop. The root's worker handles all flushes, so that their work does not count as a cgroup's own.
    """
    if not any(issued.works for issued in by_issuer.values()):
        return Gap.OPEN if threads == 1 else Gap.UNCLEAR
    if by_issuer.keys() != {"request-a", "request-b", "root"}:
        return Gap.UNCLEAR
    functions = {issuer: {function for function, _ in issued.works} for issuer, issued in by_issuer.items()}
    if root_only:
        return Gap.CLOSED if set().union(*functions.values()) == {"loop_rootcg_workfn"} else Gap.UNCLEAR
    flushed = (
        by_issuer["root"].works
        if any("F" in kind for issued in by_issuer.values() for kind in issued.requests)
        else frozenset()
    )
    own = [by_issuer[issuer].works - flushed for issuer in ("request-a", "request-b")]
    alone = (
        all({function for function, _ in works} == {"loop_workfn"} and len(works) == 1 for works in own)
        and own[0] != own[1]
    )
    return Gap.CLOSED if alone and functions["root"] == {"loop_rootcg_workfn"} else Gap.UNCLEAR


async def _evidence(harness: Harness, command: str, kind: str, *, root_only: bool = False) -> Evidence:
    """Trace a command, and judge its workers.

    `kind`: how the trace shows the requests of the command (blk_fill_rwbs), as a regular expression.
    """
    output = await _trace(harness, command)
    usual = await usual_read_controls(harness)
    by_issuer, where = parse_trace(output), f"guest {harness.guest.name}: its trace"
    threads, events = printed_number(output, "threads", where), printed_number(output, "events", where)
    works = set().union(*(issued.works for issued in by_issuer.values()))
    names = sorted({function for function, _ in works})
    reached = {
        issuer: sum(n for name, n in issued.requests.items() if compile_linear(kind).fullmatch(name))
        for issuer, issued in by_issuer.items()
    }
    return Evidence(
        claim=judge(by_issuer, threads=threads, root_only=root_only),
        reason=f"{len(works)} work structs for two cgroups and the root ({', '.join(names) or 'no work of the loop'}), "
        f"{threads} thread named as the loop",
        measures=(
            Measure(name="workers", value=len(works), unit="work structs", source="tracepoint workqueue_queue_work"),
            Measure(name="threads of the loop", value=threads, unit="threads", source="ps"),
            Measure(
                name="requests", value=sum(reached.values()), unit="requests", source="tracepoint block_rq_issue of 7,0"
            ),
        ),
        controls=(
            Control(name="the trace was on", expected="work of any kind", got=f"{events} events", holds=events > 0),
            Control(
                name="each issuer's requests reached the loop",
                expected="one or more of request-a, request-b and root",
                got=", ".join(f"{issuer} {number}" for issuer, number in reached.items()),
                holds=len(reached) == 3 and all(reached.values()),
            ),
            *usual.controls,
        ),
        balances=usual.balances,
    )


async def _workers(guest: Guest, point: Point) -> Evidence:
    async with open_harness(guest, point) as harness:
        return await _evidence(
            harness, 'dd "if=$1" of=/dev/null bs=64k "skip=$((at / 65536))" count=16 iflag=direct status=none', "R[AS]*"
        )


# The command for each kind of request, and how the trace shows it. fallocate(2) on a block device writes zeroes without
# unmapping.
_KINDS = {
    "discard": (f'blkdiscard --offset "$at" --length {MIB} "$1"', "DS?"),
    "write-zeroes": (f'blkdiscard --zeroout --offset "$at" --length {MIB} "$1"', "[NW]Z?S?"),
    "fallocate": (f'fallocate --zero-range --offset "$at" --length {MIB} "$1"', "[NW]Z?S?"),
    "flush": ('sync "$1"', "F[FNS]*"),
}


async def _requests(guest: Guest, point: Point) -> Evidence:
    command, kind = _KINDS[point.variant]
    async with open_harness(guest, point) as harness:
        return await _evidence(harness, command, kind, root_only=point.variant == "flush")


_SOURCE = "loop: use worker per cgroup instead of kworker (patch 1)"
_BASE = "one kernel thread named as the loop serves all; no work of the loop is queued to a workqueue"
_NEEDS = (*COMMON_NEEDS, Need(what="tracefs", test="test -e /sys/kernel/tracing/set_event"))

WORKERS = Scenario(
    name="workers",
    claim="Each cgroup's reads are queued to a worker of its own, the root's to the loop's own",
    patches=(1,),
    predicted_base=_BASE,
    predicted_patched="loop_workfn with one work struct for each cgroup, loop_rootcg_workfn for the root",
    source=_SOURCE,
    what="Two cgroups and the root read from the loop one after the other under the tracepoint "
    "workqueue:workqueue_queue_work",
    needs=_NEEDS,
    points=on_each_disk("ext4"),
    steps=_workers,
)

REQUESTS = Scenario(
    name="requests",
    claim="Discards, writes of zeroes and fallocate are done by the issuer's own worker; flushes, which nobody issues, "
    "by the root's",
    patches=(1,),
    predicted_base=_BASE,
    predicted_patched="loop_workfn with one work struct for each cgroup, loop_rootcg_workfn for the root; for "
    "flushes the "
    "latter alone",
    source=f"{_SOURCE}: a request without a bio, such as a flush, has no css and goes to the root's worker",
    what="Two cgroups and the root discard, zero, fallocate or sync through the loop one after the other under the "
    "same "
    "tracepoint",
    needs=_NEEDS,
    points=on_each_disk("ext4", variants=tuple(_KINDS)),
    steps=_requests,
    found="fallocate(1) ends with an fsync, whose flush is the root's work; one of 348 guests was lost to an int3 "
    "while a "
    "tracepoint was switched on (7.2, QEMU 7.2's emulation): such a guest is tried once more",
)
