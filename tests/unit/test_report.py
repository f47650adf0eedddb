import io
import json
from pathlib import Path

from rich.console import Console

from testbed.console import Finding, Kind
from testbed.kernels import Series
from testbed.report import live, results, table
from testbed.runner import Result, Side, slots
from testbed.scenarios import SCENARIOS
from testbed.store.image import Image
from testbed.store.kernel_files import KernelFiles
from testbed.topology import Guest
from testbed.units import GIB
from testbed.verdict import Charge, Control, Evidence, Judgement, Lost, Measure, Verdict, judge_pair
from tests.unit.values import host


def kernel(name: str) -> KernelFiles:
    return KernelFiles(
        name=name,
        series=Series.AFTER,
        release=f"{name}-cloud",
        origin="o",
        sha256="s",
        folder=Path("/k"),
        early_modules=(),
        has_modules=True,
    )


KERNELS = {"base": kernel("5.10"), "patched": kernel("6.1")}


def side(claim: Charge, folder: Path) -> Side:
    evidence = Evidence(
        claim=claim,
        reason="so",
        measures=(Measure(name="disk reads", value=33554432, unit="bytes", source="query-blockstats"),),
        controls=(Control(name="c", expected="x", got="x", holds=True),),
    )
    finding = Finding(kind=Kind.OOM, seconds=1.5, text="dd invoked oom-killer")
    return Side(outcome=evidence, findings=(finding,), evidence=folder / "guests" / "g", took_s=1.0, ready_after_s=0.5)


def passed(folder: Path) -> Result:
    sides = {"base": side(Charge.BYPASSED, folder), "patched": side(Charge.CHARGED, folder)}
    return Result(scenario=SCENARIOS["gate"], sides=sides, judgement=judge_pair(sides["base"].outcome, sides["patched"].outcome))


def lost(folder: Path) -> Result:
    outcome = Lost(why="guest g0: ready: panic [red]on[/red] its console\n    | \x1b[2J")
    gone = Side(outcome=outcome, findings=(), evidence=folder / "guests" / "h", took_s=1.0, ready_after_s=0.0)
    return Result(
        scenario=SCENARIOS["oom-tmpfs"],
        sides={"base": gone, "patched": gone},
        judgement=Judgement(verdict=Verdict.INFRA, reason=outcome.why),
    )


def shown(of: tuple[Result, ...]) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table.results_table(of, KERNELS))
    table.show_losses(of, console)
    return console.export_text()


def test_results_are_json_with_units_and_sources(tmp_path: Path) -> None:
    image = Image(name="bookworm", sha256="i", folder=Path("/i"))
    document = results.document(tmp_path, Verdict.PASS, ["testbed", "compare"], host(), image, KERNELS, (passed(tmp_path), lost(tmp_path)))
    results.write(document, tmp_path)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["run"] == tmp_path.name and read["verdict"] == "PASS" and set(read["kernels"]) == {"base", "patched"}
    gate, oom = read["scenarios"]
    assert gate["verdict"] == "PASS" and gate["base"]["claim"] == "bypassed"
    assert gate["patched"]["measures"] == {"disk reads": {"value": 33554432, "unit": "bytes", "source": "query-blockstats"}}
    assert gate["patched"]["console"] == [{"kind": "oom", "seconds": 1.5, "text": "dd invoked oom-killer"}]
    assert oom["verdict"] == "INFRA" and oom["base"]["claim"] is None and oom["base"]["measures"] == {}


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert len({results.new_run_folder(tmp_path) for _ in range(20)}) == 20


def test_the_table_shows_measures_verdict_and_controls(tmp_path: Path) -> None:
    text = shown((passed(tmp_path),))
    assert "disk reads: 32MB" in text and "PASS" in text and "controls: 1 of 1 hold" in text and "5.10-cloud" in text


def test_what_a_guest_says_is_text_and_not_markup(tmp_path: Path) -> None:
    text = shown((lost(tmp_path),))
    assert "[red]on[/red]" in text and "INFRA" in text


def test_guests_run_as_cores_and_memory_allow() -> None:
    model = Guest()
    assert slots(host(cores=2), model) == 2
    assert slots(host(cores=8, free=6 * GIB), model) == 3
    assert slots(host(cores=8, free=GIB), model) == 1


def test_without_a_terminal_progress_is_plain_lines() -> None:
    console = Console(record=True, file=io.StringIO(), force_terminal=False, width=80)
    with live.progress(console) as progress, progress.task("image [x]") as task:
        task.update(fraction=0.5, detail="half [y]")
        task.update(fraction=0.5, detail="half [y]")
        progress.note("a note")
    lines = console.export_text().splitlines()
    assert lines[:3] == ["image [x]: started", "image [x]:  50% half [y]", "a note"] and lines[3].startswith("image [x]: done in")


def test_on_a_terminal_progress_moves_and_goes() -> None:
    console = Console(record=True, file=io.StringIO(), force_terminal=True, width=80)
    with live.progress(console) as progress, progress.task("image") as task:
        task.update(fraction=0.5, detail="half")
    assert "image" in console.export_text()
