"""What a run of `repro`, `reduce`, `bisect` or `suite` has left, as a reader sees it: its result, a table, and its tries. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.api.blktests import RESULTS, Status
from testbed.report import partial
from testbed.report.bugs import tables as repro
from testbed.report.schema import KEYS_OF_CASES

Document = Mapping[str, Any]

# The verdicts that other runs have, by what runs of bugs say.
VERDICTS = {
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
    """`folders`: what each row's guests have left, from the run's folder; empty where rows have none of their own."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """All tries of one kernel, as `tries.said` says them."""

    kernel: str
    attempts: tuple[Document, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """`verdict`: as other runs have it. `smaller`: the text of the bug that is left, or nothing."""

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


def bug_view(document: Document) -> View:
    """Of any of them."""
    make: dict[str, Callable[[Document], tuple[tuple[Table, ...], tuple[Tries, ...]]]] = {
        "repro": _repro,
        "reduce": _reduce,
        "bisect": _bisect,
        "suite": _suite,
    }
    tables, tries = make[document["what"]](document)
    title, own = _of_suite(document) if document["what"] == "suite" else _of_bug(document)
    return View(
        run=document["run"],
        title=title,
        verdict=VERDICTS[document["result"]],
        result=bug_result(document),
        reason=reason_of(document),
        command=shlex.join(["./tb", *document["command"][1:]]),
        facts=(*own, *_facts(document)),
        tables=tables,
        tries=tries,
        smaller=document["smaller"] if document["what"] == "reduce" else "",
    )


def bug_result(document: Document) -> str:
    """In a word, or two where a partial run has more than that it is unfinished."""
    word = str(document["result"])
    return f"{word}, partial" if document.get("partial") and word != "unfinished" else word


def reason_of(document: Document) -> str:
    """Why its result is what it is; of a partial run how far it came before all."""
    words = (str(partial.read_partial(document) or ""), document["reason"])
    return "; ".join(one for one in words if one)


def _verdict(kernel: Document) -> str:
    """Whether it is as it must be there."""
    right = {"shows": kernel["must_show"], "absent": not kernel["must_show"]}
    if kernel["verdict"] not in right:
        return "INFRA"
    if kernel.get("told_apart") is False:
        return "INVALID"
    return "PASS" if right[kernel["verdict"]] else "FAIL" if kernel["must_show"] else "INVALID"


def as_results_document(document: Document) -> dict[str, Any]:
    """A reproduction in the shape of `results.json`: one case, judged on each kernel alone; or a suite, each of whose tests is a case."""
    if document["what"] == "suite":
        return _suite_as_results(document)
    kernels = {
        _key(one): {key: one[key] for key in ("name", "release", "origin", "sha256")} for one in document["kernels"]
    }
    overall = VERDICTS[document["result"]]
    case = {
        "name": document["bug"]["summary"],
        "scenario": "repro",
        "claim": f"The signature shows where it must, and only there: {'; or '.join(document['bug']['signature'])}",
        "verdict": overall,
        "reason": reason_of(document),
        **{_key(one): _side(one) for one in document["kernels"]},
    }
    same = ("run", "partial", "command", "host", "image", "took_s")
    return {**{key: document.get(key) for key in same}, "verdict": overall, "kernels": kernels, "scenarios": [case]}


def _key(kernel: Document) -> str:
    """What a kernel is called beside the keys of a case."""
    name = str(kernel["name"])
    return f"kernel {name}" if name in KEYS_OF_CASES else name


def _suite_as_results(document: Document) -> dict[str, Any]:
    kernel = document["kernel"]
    cases = [
        {
            "name": one["name"],
            "scenario": one["group"],
            "claim": f"{one['name']} of {document['checkout']} passes",
            "verdict": (verdict := VERDICTS[RESULTS[Status(one["status"])]]),
            "reason": (reason := f"{one['status']}: {one['reason']}" if one["reason"] else one["status"]),
            _key(kernel): _nothing_measured(
                took_s=_seconds(one["runtime"]), evidence=one["folder"], verdict=verdict, said=reason
            ),
        }
        for one in document["tests"]
    ]
    same = {key: document.get(key) for key in ("run", "partial", "command", "host", "image", "took_s")}
    return {**same, "verdict": VERDICTS[document["result"]], "kernels": {_key(kernel): kernel}, "scenarios": cases}


def _seconds(runtime: str) -> float:
    """What a test says that it took, such as 1.2s."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s", runtime)
    return float(found[1]) if found else 0.0


def _nothing_measured(*, took_s: float, evidence: str, verdict: str, said: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"claim": None, "measures": {}, "controls": [], "balances": [], "console": []}
    return {"took_s": took_s, "evidence": evidence, "reason": said, "verdict": verdict, "judgement": said, **nothing}


def _side(one: Document) -> dict[str, Any]:
    said = f"expected that it {'shows' if one['must_show'] else 'does not show'}; it showed in {' '.join(repro.rate(one).split())}"
    if ended := repro.endings(one):
        said += f"; {ended}"
    counts = {"hits": one["hits"], "tries": one["tries"], "without a result": one["troubles"]}
    first = next((attempt["evidence"] for attempt in one["attempts"]), "")
    measures = {name: {"value": value, "unit": "tries", "source": "repro.json"} for name, value in counts.items()}
    evidence = f"guests/{first}"
    return {
        **_nothing_measured(took_s=one["took_s"], evidence=evidence, verdict=_verdict(one), said=said),
        "measures": measures,
    }


Facts = tuple[tuple[str, str], ...]


def _of_bug(document: Document) -> tuple[str, Facts]:
    """Title and facts of its own."""
    bug = document["bug"]
    return bug["summary"], (
        ("Source", bug["source"]),
        ("Signature", "; or ".join(bug["signature"])),
        ("Seed", str(document["seed"])),
    )


def _of_suite(document: Document) -> tuple[str, Facts]:
    kernel = document["kernel"]
    return f"Suite {document['checkout']} on {kernel['name']}", (
        ("Kernel", f"{kernel['name']} ({kernel['release']}), {kernel['origin']}"),
    )


def _facts(document: Document) -> list[tuple[str, str]]:
    host = document["host"]
    return [
        ("Took", f"{document['took_s']:.0f} s"),
        ("QEMU", f"{host['qemu']} ({host['accelerator']}) on {host['cores']} cores with Linux {host['kernel']}"),
        ("Guest image", f"{document['image']['name']} {document['image']['sha256'][:16]}"),
    ]


def _repro(document: Document) -> tuple[tuple[Table, ...], tuple[Tries, ...]]:
    rows = tuple(repro.row(one) for one in document["kernels"])
    table = Table(caption="How often the signature showed on each kernel", head=repro.HEAD, rows=rows)
    return (table,), tuple(_tries(one) for one in document["kernels"])


def _reduce(document: Document) -> tuple[tuple[Table, ...], tuple[Tries, ...]]:
    steps = document["steps"]
    (whole,) = document["kernels"]
    rows = tuple(
        (one["what"], "yes" if one["kept"] else "no", f"{one['hits']} of {one['tries']}", one["why"]) for one in steps
    )
    return (
        Table(caption="The bug as it was", head=repro.HEAD, rows=(repro.row(whole),)),
        Table(
            caption="What was tried without, and whether it still showed as often",
            head=("candidate", "shows as often", "hits", "why"),
            rows=rows,
            folders=tuple(one["folder"] for one in steps),
        ),
    ), (_tries(whole),)


def _bisect(document: Document) -> tuple[tuple[Table, ...], tuple[Tries, ...]]:
    asked = document["asked"]
    rows = tuple((one["kernel"], one["release"], one["answer"], repro.rate(one), one["why"]) for one in asked)
    table = Table(
        caption="The kernels that were asked, in turn",
        head=("kernel", "release", "answer", repro.RATE, "why"),
        rows=rows,
    )
    return (table,), tuple(_tries(one) for one in asked)


def _suite(document: Document) -> tuple[tuple[Table, ...], tuple[Tries, ...]]:
    tests = document["tests"]
    rows = tuple(
        (one["name"], one["status"], one["runtime"], "\n".join((one["reason"], *one["details"])).strip())
        for one in tests
    )
    head = ("test", "status", "time", "reason")
    return (
        Table(caption="The tests, in their order", head=head, rows=rows, folders=tuple(one["folder"] for one in tests)),
    ), ()


def _tries(kernel: Document) -> Tries:
    return Tries(kernel=f"{kernel['name']} ({kernel['release']})", attempts=tuple(kernel["attempts"]))
