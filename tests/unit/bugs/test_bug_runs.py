"""What runs of bugs leave: names that are told apart, intervals that say no more than is known, and files for others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.api.blktests import RESULTS, Status
from testbed.api.blktests import TestResult as SuiteOutcome
from testbed.api.suites import Suite
from testbed.bugs import conclusion, repro
from testbed.bugs.bisect import UNFINISHED, Bisector, BisectStep
from testbed.bugs.bisect_search import BisectAnswer, BisectRange
from testbed.bugs.kernel_tries import KernelTries, KernelVerdict
from testbed.bugs.load import parse_mapping
from testbed.bugs.outcome import Outcome, Try
from testbed.bugs.reduce import Reduced, Step
from testbed.bugs.repro import ReproJob, StopRule
from testbed.bugs.signature import End, Match
from testbed.cli import scenario_run
from testbed.errors import GuestLost, UsageError
from testbed.guest.channels.kernel_log import Finding, Kind
from testbed.guest.metrics import disk_speed
from testbed.report import result_reader, runs
from testbed.report.bugs import files as bug_files
from testbed.report.bugs import results
from testbed.report.bugs import tables as report
from testbed.report.bugs.results import RunInfo
from testbed.report.bugs.schema import MODELS, BugDocument
from testbed.report.bugs.schema import Suite as SuiteDocument
from testbed.report.partial import Partial
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.store.kernels.table import Series
from testbed.text import parse_printable_json
from tests.support import junit as junit_rules
from tests.support import ktap as ktap_rules
from tests.support.command import testbed

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


def test_kernels_of_one_file_name_are_told_apart_and_names_are_plain() -> None:
    first, same, other = kernel("bzImage", "aa" * 8), kernel("bzImage", "aa" * 8), kernel("bzImage", "bb" * 8)
    assert [one.name for one in repro.distinct_names((first, same, other))] == [
        "bzImage",
        "bzImage",
        "bzImage-bbbbbbbb",
    ]
    deb = kernel("../linux-image_6.1~rc1+deb12u1 amd64.deb", "cc" * 8)
    assert repro.distinct_names((deb,))[0].name == "linux-image_6.1-rc1-deb12u1-amd64.deb"


def test_one_kernel_is_not_on_both_sides_whatever_its_file_is_called() -> None:
    first, same, other = kernel("a", "aa"), kernel("b", "aa"), kernel("c", "cc")
    assert [[one.name for one in side] for side in repro.kernel_sides((first, same), (other,))] == [["b"], ["c"]]
    with pytest.raises(UsageError, match="kernels a and b: expected it to show on one of them only"):
        repro.kernel_sides((first,), (same,))


def test_compare_notes_that_both_sides_are_one_kernel_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "load", lambda *_: {})
    monkeypatch.setattr(disk_speed, "too_fast_profiles", lambda *_: ())
    factory: Any = SimpleNamespace(
        host=job(Path("/run")).factory.host, cold=False, folders=SimpleNamespace(cache=Path("/cache"))
    )
    file: Any = SimpleNamespace(guest=SimpleNamespace(memory=1 << 30))

    def notes(**kernels: KernelFiles) -> list[str]:
        said: list[str] = []
        progress: Any = SimpleNamespace(note=said.append)
        scenario_run._announce(factory, kernels, file, progress)
        return [line for line in said if "one kernel" in line]

    first, same, other = kernel("a", "aa"), kernel("b", "aa"), kernel("c", "cc")
    assert notes(base=first, patched=same) == [
        "base and patched are one kernel, of the same content: no case can pass, for it cannot show the gap and close it"
    ]
    assert notes(base=first, patched=other) == notes(kernel=first) == notes(a=first, b=same) == []


def test_tries_that_stopped_at_a_hit_say_less_and_those_cut_short_less_still() -> None:
    whole = tried("k", HIT)
    assert [round(bound, 3) for bound in whole.interval] == [0.207, 1.0]
    stopped = replace(whole, stopped=True)
    assert [round(bound, 3) for bound in stopped.interval] == [0.025, 1.0]
    assert stopped.words == "1 of 1, stopped at a hit (95 % interval 3% to 100%)"
    # Of four tries at least one is a hit; the other three were cut short, and may have been hits as well.
    low, high = replace(stopped, cut=3).interval
    assert (round(low, 4), high) == (0.0063, 1.0)


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
    bisector: Any = SimpleNamespace(rate=0.5, asked=asked, so_far=asked)
    alone: Any = SimpleNamespace(rate=0.5, asked=asked[:1], so_far=asked[:1])
    info = RunInfo(command=["testbed", "verb", "--expect", "it's"], took_s=9.0, partial=partial)
    between = BisectRange(good=1, bad=0)
    return {
        "repro": results.repro_document(job(folder), (shows, clean), info),
        "reduce": results.reduce_document(job(folder), reduced, f"summary: {EVIL}\n", info),
        "bisect": results.bisect_document(job(folder), ("bad", "good"), between, bisector, info),
        "ask": results.ask_document(job(folder), "bad", alone, 0.5, info),
        "suite": suite(folder, info),
    }


@pytest.mark.parametrize("what", ["repro", "reduce", "bisect", "ask"])
@pytest.mark.slow
def test_a_run_is_read_again_listed_and_shown(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "state" / "runs" / "20260101T000000Z-abcd"
    guest = folder / "guests" / "bad-1"
    guest.mkdir(parents=True)
    (guest / "console.log").write_text(f"first\n{EVIL}\nlast words\n")
    document = documents(folder)[what]
    bug_files.write(document, folder)
    read = bug_files.read(folder)
    assert read is not None and read.as_json() == parse_printable_json(json.dumps(document.as_json()).encode())
    (listed,) = runs.list_runs(folder.parent, result_reader.summarize)
    assert (listed.verdict, listed.command[0]) == (document.result, "verb") and listed.cases

    page = (folder / "report.html").read_text()
    assert "<script>" not in page and "last words" in page and 'href="./guests/bad-1/console.log"' in page
    printed = testbed(tmp_path, "report", "last")
    text = printed.stdout
    assert printed.returncode == {"ask": 1, "repro": 3}.get(what, 0)
    assert f": {document.result}" in text and "./tb verb --expect" in text and "1 of 1: 1% to 100%" in text
    assert "\x1b" not in text
    shown = testbed(tmp_path, "report", "--format", "junit")
    if what == "repro":
        junit_rules.check((folder / "junit.xml").read_text())
        ktap_rules.parse((folder / "results.ktap").read_text())
        assert (
            'name="a bug' in shown.stdout
            and 'failures="0"' in shown.stdout
            and "not ok 2 good" in (folder / "results.ktap").read_text()
        )
        assert "not told apart" in text and "good (not seen in 2 tries, up to 66%)" in text
    else:
        assert shown.returncode == 2 and f"`{document.what}` passes or fails nothing" in shown.stderr
    assert "expected a run of scenarios, got one of" in testbed(tmp_path, "report", "--diff", "last", "last").stderr


INTERRUPTED = Partial(ended=1, wanted=12, at_most=True, what="tries", why="interrupted by SIGINT")


@pytest.mark.parametrize("what", ["repro", "reduce", "bisect", "ask", "suite"])
@pytest.mark.slow
def test_a_run_that_ended_early_is_shown_as_that(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "state" / "runs" / "20260101T000000Z-abcd"
    folder.mkdir(parents=True)
    document = documents(folder, INTERRUPTED)[what]
    assert document.result == "unfinished" and documents(folder)[what].result != "unfinished"
    bug_files.write(document, folder)
    (listed,) = runs.list_runs(folder.parent, result_reader.summarize)
    assert listed.partial == INTERRUPTED
    said = "1 of at most 12 tries ended; interrupted by SIGINT"
    for kind in ("markdown", "html"):
        text = bug_files.FORMATS[kind](document, folder)
        assert "unfinished" in text and said in text
    shown = testbed(tmp_path, "report")
    assert shown.returncode == 2 and said in shown.stdout and shown.stderr.startswith("verdict: unfinished ")
    assert "1 of 12" in testbed(tmp_path, "runs").stdout
    if what in ("repro", "suite"):
        junit_rules.check((folder / "junit.xml").read_text())
        assert f'message="Partial: {said}.' in (folder / "junit.xml").read_text()
        *_, whole = ktap_rules.parse((folder / "results.ktap").read_text())[0].tests
        assert (whole.name, whole.status) == ("the whole run", "not ok")


def test_a_killed_run_says_so_where_its_results_are_read(tmp_path: Path) -> None:
    going_on = INTERRUPTED.model_copy(update={"why": ""})
    (tmp_path / "suite.json").write_text(json.dumps(documents(tmp_path, going_on)["suite"].as_json()))
    with runs.running(tmp_path, ["testbed"]):
        running = bug_files.read(tmp_path)
    assert running is not None and str(running.partial).endswith("; the run goes on")
    killed = bug_files.read(tmp_path)
    assert killed is not None and killed.partial is not None
    assert killed.partial.why.startswith("its process ended without writing why")


def test_what_is_known_of_a_suite_or_a_clean_kernel_stays_known_where_a_run_ends_early(tmp_path: Path) -> None:
    wrong = conclusion.conclude((tried("bad", HIT), tried("good", HIT, must_show=False, ended=False)))
    assert wrong[0] is conclusion.ReproResult.INVALID
    found = (tried("bad", HIT), tried("good", HIT, must_show=False, ended=False))
    interrupted = RunInfo(command=[], took_s=9.0, partial=INTERRUPTED)
    assert results.repro_document(job(tmp_path), found, interrupted).result == "invalid"
    # No hit in some of the tries is no absence.
    assert (
        tried("bad", MISS, MISS, ended=False).verdict is KernelVerdict.TROUBLE
        and tried("bad", MISS).verdict is KernelVerdict.ABSENT
    )


def test_results_that_are_broken_say_where(tmp_path: Path) -> None:
    (tmp_path / "repro.json").write_text(
        json.dumps(documents(tmp_path)["repro"].as_json() | {"kernels": [{"name": 3}]})
    )
    with pytest.raises(UsageError, match=r"repro\.json: expected the results of a run, version 1: kernels\.0\.name"):
        bug_files.read(tmp_path)
    (tmp_path / "repro.json").write_text("{")
    with pytest.raises(UsageError, match="expected JSON"):
        bug_files.read(tmp_path)
    assert bug_files.read(tmp_path / "guests") is None


def test_every_result_has_an_exit_code() -> None:
    every = (
        {result.value for result in conclusion.ReproResult}
        | {answer.value for answer in BisectAnswer}
        | {"reduced", "bisected", "wrong ends", "comes and goes", UNFINISHED}
    )
    every |= set(RESULTS.values())
    assert every == results.EXIT_CODES.keys()


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


def test_every_report_says_how_tries_ended_that_did_not_show_it(tmp_path: Path) -> None:
    clean = tried("clean", MISS, MISS, MISS, must_show=False)
    ways = ("status 0, last line: refused", "status 0, last line: refused", "status 1, and it printed nothing")
    tries = tuple(replace(one, why=why, last_line="refused") for one, why in zip(clean.tries, ways, strict=True))
    document = results.repro_document(job(tmp_path), (tried("shows", HIT), replace(clean, tries=tries)), SHORT)
    bug_files.write(document, tmp_path)
    said = "where it did not show: status 0, last line: refused (2 times); status 1, and it printed nothing"
    assert f"clean: {said}" in report.notable_outcomes(document)
    assert all("did not show" not in line for line in report.notable_outcomes(document) if line.startswith("shows"))
    assert report.try_line(document.kernels[1].attempts[0]).endswith(": status 0, last line: refused")
    for text in (
        bug_files.markdown(document),
        *((tmp_path / name).read_text() for name in ("report.html", "repro.json", "junit.xml")),
    ):
        assert "status 0, last line: refused" in text
    assert document.kernels[1].attempts[0].last_line == "refused"


def test_a_kernel_that_complains_where_the_bug_does_not_show_is_named(tmp_path: Path) -> None:
    clean = tried("clean", MISS, MISS, MISS, must_show=False)
    findings = tuple(
        Finding(kind=kind, seconds=1.0, text=text)
        for kind, text in (
            (Kind.OOM, "dd invoked oom-killer"),
            (Kind.WARNING, "WARNING: a"),
            (Kind.WARNING, "WARNING: b"),
        )
    )
    unread = (Finding(kind=Kind.UNREAD, seconds=None, text="the kernel's log was not read: x"),)
    tries = (replace(clean.tries[0], findings=findings), replace(clean.tries[1], findings=unread), *clean.tries[2:])
    document = results.repro_document(job(tmp_path), (tried("shows", HIT), replace(clean, tries=tries)), SHORT)
    assert document.kernels[1].attempts[0].kernel_log == ["warning: WARNING: a (and 1 more)"]
    assert document.kernels[1].attempts[1].kernel_log == ["not read: the kernel's log was not read: x"]
    assert any(
        "; its kernel's log in 2: warning: WARNING: a (and 1 more)" in line
        for line in report.notable_outcomes(document)
    )
    bug_files.write(document, tmp_path)
    for text in (
        bug_files.markdown(document),
        *((tmp_path / name).read_text() for name in ("report.html", "junit.xml")),
    ):
        assert "warning: WARNING: a (and 1 more)" in text
