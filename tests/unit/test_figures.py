"""The figures of the product that README.md and docs/ state, each against the code that it comes from.

A row is a file, its sentence with `{}` for each figure, and their values. A figure that drifts fails here; a new one
gets a row. What was measured has its command beside it in the text, and is not here; docs/scenarios.md, hardware.md and
errors.md are generated as a whole.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from testbed import regex
from testbed.bugs import absence, reduce, repro, statistics
from testbed.bugs.model import Bug
from testbed.bugs.statistics import Rate
from testbed.cli import cache, scenario_run
from testbed.guest import cpu_memory, timeline
from testbed.guest.channels import console, ssh
from testbed.guest.metrics import cgroup_sampler
from testbed.host import admission, quota
from testbed.qemu import jail, jail_probe
from testbed.qemu.nbd_server import device
from testbed.report import diff, html, plots, rank_test
from testbed.scenarios import verdict
from testbed.scenarios.catalogue import MAIN, SCENARIOS, cases
from testbed.scenarios.verdict import EXIT_CODES, Verdict
from testbed.store.kernels import builder, interrupted_build
from testbed.store.kernels.table import shipped_table
from testbed.topology.base import _LONGEST_US
from testbed.topology.disks import Disk
from testbed.topology.model import GuestModel
from testbed.topology.timeline import TimelineEntry
from testbed.units import KIB, MIB, format_duration, format_size, parse_duration

ROOT = Path(__file__).parents[2]
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TENS = {20: "twenty", 30: "thirty"}
KERNELS = shipped_table()


def word(number: int) -> str:
    return _TENS.get(number) or _WORDS[number]


def times(number: float) -> str:
    return {1: "once", 2: "twice"}.get(int(number)) or f"{word(int(number))} times"


def version(kernel: str) -> str:
    return kernel.removeprefix("debian-")


def stated(file: str, pattern: str) -> str:
    """Return a number from a file that is not Python."""
    match = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"))
    assert match is not None, (file, pattern)
    return match[1]


def percent(share: float) -> str:
    return f"{share * 100:.0f}"


def matrix() -> tuple[int, int, list[str]]:
    """Of docs/results/four-kernels.md: cases with a PASS, those with SKIPs alone, and the scenarios that are newer than
    it.
    """
    text = (ROOT / "docs/results/four-kernels.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Za-z0-9/_-]+) \| (\*\*.*)$", text, re.MULTILINE)
    found = [set(re.findall(r"\*\*([A-Z]+)\*\*", cells)) for _, cells in rows]
    assert all(each <= {"PASS", "SKIP"} for each in found)
    newer = dict.fromkeys(
        case.scenario.name for name, case in cases().items() if name not in {name for name, _ in rows}
    )
    return sum("PASS" in each for each in found), sum(each == {"SKIP"} for each in found), list(newer)


_CODES = [EXIT_CODES[one] for one in (Verdict.PASS, Verdict.FAIL, Verdict.INFRA, Verdict.INVALID, Verdict.SKIP)]
_PASSES, _SKIPS, _NEWER = matrix()
_RUN, _CACHE = (format_size(quota.size_limit(name)) for name in (quota.RUN_LIMIT, quota.CACHE_LIMIT))
_FLAVOURS = builder.list_flavours(ROOT / "images")
_SAMPLES_A_SECOND = 1e6 / parse_duration(scenario_run.DEFAULT_SAMPLE)
_PRINTED = stated("testbed/report/page/report.js", r"MOST_PRINTED = (\d+)")
_SEARCHED = stated("testbed/report/page/report.html.j2", r"items\|length > (\d+)")
_LEAST_BYTES, _LEAST_S = diff._LEAST["bytes"], diff._LEAST["s"]

FIGURES: list[tuple[str, str, tuple[Any, ...]]] = [
    (
        "README.md",
        "compares Debian's {} (base) with its {} (patched)",
        (version(KERNELS.base), version(KERNELS.patched)),
    ),
    ("README.md", "one point of each of the {} scenarios", (len(SCENARIOS),)),
    ("README.md", "the table: {}; and what was built here", (", ".join(map(version, KERNELS.rows)),)),
    ("README.md", "the full matrix on the {} kernels of the table", (word(len(KERNELS.rows)),)),
    ("README.md", "{} PASS, {} SKIP; of the {} cases that there are now", (_PASSES, _SKIPS, len(cases()))),
    ("README.md", "that there are now it lacks those of `{}`", ("`, `".join(_NEWER),)),
    (
        "README.md",
        "{} pass, {} fail, {} error, {} no result (the base shows no gap, or a control misbehaved), {} everything",
        (*_CODES,),
    ),
    (
        "README.md",
        "`TESTBED_RUN_LIMIT` and `TESTBED_CACHE_LIMIT` ({} each)",
        (_RUN if _RUN == _CACHE else f"{_RUN}, {_CACHE}",),
    ),
    (
        "README.md",
        "The others cover writes on {} filesystems",
        (word(sum(name.startswith("write-") for name in SCENARIOS)),),
    ),
    ("README.md", "a difference above {} % is shown as a finding", (percent(verdict._BALANCED),)),
    ("docs/architecture.md", "A run may take {} of this machine's disks (`TESTBED_RUN_LIMIT`)", (_RUN,)),
    ("docs/architecture.md", "and {} MiB more for each", (admission._OVERHEAD_BYTES // MIB,)),
    (
        "docs/architecture.md",
        "removes what was unused for {} days",
        (inspect.signature(cache.gc_command).parameters["unused_for"].default.removesuffix("d"),),
    ),
    ("docs/guests.md", "may take `TESTBED_RUN_LIMIT` ({}) of this machine's disks", (_RUN,)),
    ("docs/guests.md", "does not give up the memory within {} s", (f"{cpu_memory._PATIENCE_S:g}",)),
    (
        "docs/guests.md",
        "{} more than its disks take must be free beside its memory",
        (format_size(quota.MARGIN_BYTES),),
    ),
    ("docs/guests.md", "all that come within {} ms", (f"{device._FORCED_S * 1000:g}",)),
    (
        "docs/guests.md",
        "have an `oom_score_adj` of {}",
        (stated("images/guest/testbed-init", r"echo (-\d+) >/proc/self/oom_score_adj"),),
    ),
    ("docs/kernels.md", "the finished objects stay, but for the last {}", (word(interrupted_build._UNCERTAIN_LINES),)),
    ("docs/kernels.md", "With all {} in one kernel", (word(len(_FLAVOURS)),)),
    ("docs/pytest.md", "longer than {} MiB, which is what is kept", (ssh._MAX_OUTPUT_BYTES // MIB,)),
    ("docs/reports.md", "Of more than {0} cases the first {0} have pictures", (html._DRAWN_CASES,)),
    ("docs/reports.md", "Up to {} lines are drawn", (word(plots._MOST_LINES),)),
    (
        "docs/reports.md",
        "of a page of more than {} cases those of open ones",
        (_PRINTED,),
    ),
    (
        "docs/reports.md",
        "A page of more than {} cases has a search",
        (_SEARCHED,),
    ),
    ("docs/reports.md", "While a scenario runs, {} a second", (times(_SAMPLES_A_SECOND),)),
    (
        "docs/reports.md",
        "at most {} of them: `memory`",
        (stated("images/guest/testbed-agent", r"\$MOST_GROUPS = (\d+)"),),
    ),
    ("docs/reports.md", "no more than a {}th of the time", (f"{1 / cgroup_sampler._MOST_SHARE:g}",)),
    (
        "docs/reports.md",
        "gives {} or less: of what is called changed {} % is expected to be chance",
        (diff.LEVEL, percent(diff.LEVEL)),
    ),
    ("docs/reports.md", "A shift of no more than {} KiB or {} s is no change", (f"{_LEAST_BYTES / KIB:g}", _LEAST_S)),
    ("docs/reports.md", "above {} attempts on both sides together", (rank_test.EXACT,)),
    ("docs/reports.md", "Fewer than {0} attempts against {0} say nothing", (rank_test.LEAST,)),
    ("docs/reports.md", "{} PASS, {} FAIL, {} error or INFRA, {} INVALID, {} everything skipped", (*_CODES,)),
    ("docs/reproduce.md", "without it a plain guest with {} CPUs", (GuestModel().cpus,)),
    ("docs/reproduce.md", "lines are cut to {} characters", (regex.LONGEST_LINE,)),
    ("docs/reproduce.md", "up to {} at once, if there is memory", (admission._MOST_IDLE,)),
    (
        "docs/reproduce.md",
        "({} hits in a row are needed for that, {} for 90 %)",
        (statistics.tries_until(0.95), statistics.tries_until(0.9)),
    ),
    ("docs/reproduce.md", "after {} of them in a row the kernel is given up", (word(repro._TROUBLES_IN_A_ROW),)),
    (
        "docs/reproduce.md",
        "A bug that always shows takes {} tries on each kernel",
        (next(tries for tries in range(1, 99) if absence.is_absent(Rate(hits=tries, tries=tries), tries)),),
    ),
    (
        "docs/reproduce.md",
        "the tries end before ({}, if the file says nothing else)",
        (Bug.model_fields["tries"].default,),
    ),
    ("docs/reproduce.md", '"not seen in 2 tries, up to {}%"', (percent(Rate(hits=0, tries=2).high),)),
    (
        "docs/reproduce.md",
        "after 6 of them a rate of up to {} %",
        (percent(Rate(hits=0, tries=6).high),),
    ),
    ("docs/reproduce.md", "more than {}/3 times as high on the one kernel", (f"{absence.MARGIN * 3:g}",)),
    ("docs/reproduce.md", "one hit in one try means {} % to 100 %", (percent(statistics.exact_interval(1, 1, 1)[0]),)),
    ("docs/reproduce.md", "the first {} of each kind", (console._MAX_FINDINGS,)),
    ("docs/reproduce.md", "It measures the rate at the bad end ({} tries)", (word(reduce.MEASURED_TRIES),)),
    ("docs/security.md", "a uid of its own ({}, or `TESTBED_QEMU_USER`)", (jail_probe._ACCOUNT.uid,)),
    ("docs/security.md", "opens at most {} files", (jail._OPEN_FILES,)),
    (
        "docs/security.md",
        "output of a command is kept up to {} MiB a stream, a file that is fetched up to {} GiB",
        (ssh._MAX_OUTPUT_BYTES // MIB, ssh._MAX_FILE_BYTES // MIB // 1024),
    ),
    (
        "docs/security.md",
        "a console costs {} MiB of disk at most, and a line of it {} KiB of memory",
        ((console._MAX_LOG_BYTES + console._LAST_BYTES) // MIB, console.MAX_LINE_BYTES // KIB),
    ),
    ("docs/topologies.md", "| `cpus`, `memory` | {} and `{}` |", (GuestModel().cpus, format_size(GuestModel().memory))),
    ("docs/topologies.md", "a volatile cache of its own ({})", (format_size(Disk.model_fields["cache_size"].default),)),
    ("docs/topologies.md", "at most {} characters; `tb-NAME` without it", (20,)),
    ("docs/topologies.md", "in that many steps ({})", (TimelineEntry.model_fields["steps"].default,)),
    ("docs/topologies.md", "a value (read {} a second)", (times(1 / timeline._POLL_S),)),
    ("docs/topologies.md", "A duration is at most {}", (format_duration(_LONGEST_US),)),
]


@pytest.mark.parametrize(
    ("file", "sentence", "values"), FIGURES, ids=[f"{file}: {sentence[:40]}" for file, sentence, _ in FIGURES]
)
def test_a_figure_in_the_docs_matches_the_code(file: str, sentence: str, values: tuple[Any, ...]) -> None:
    text = " ".join((ROOT / file).read_text(encoding="utf-8").split())
    said = sentence.format(*values)
    around = re.split(r"\{\d?\}", sentence)[0] or re.split(r"\{\d?\}", sentence)[1]
    at = text.find(around.strip())
    assert said in text, f"{file}: expected {said!r}, got {text[max(0, at - 20) : at + 120]!r}"


def test_the_readmes_table_is_the_main_job() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \| ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(name for row in rows for name in re.findall(r"`([a-z0-9/-]+)`", row))[: len(MAIN)] == MAIN
