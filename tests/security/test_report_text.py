"""Attacks by texts in results: control characters, line breaks, and stacks of a guest's choice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from testbed.report import diff, formats, sensitivity, stack_svg
from testbed.report.bugs import files
from testbed.report.bugs.schema import MODELS
from testbed.report.markdown import markdown
from testbed.report.schema import Document
from testbed.report.stack_model import Block, Stack
from testbed.text import parse_printable_json
from tests.support.run_folders import FORGED, bug_results, run_verb, scenario_results
from tests.support.run_results import document, failed, passed, plain

EVIL = "\x1b]0;owned\x07\x1b[2Jname\u202e\x9b31m\ud800"


@pytest.mark.parametrize("what", ["results.json", "repro.json", "reduce.json", "bisect.json", "suite.json"])
def test_no_text_of_results_steers_the_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    found = scenario_results(folder) if what == "results.json" else bug_results(folder, what.removesuffix(".json"))

    def evil(value: Any, key: str = "") -> Any:
        """Append to every text that has no fixed list of values."""
        if isinstance(value, dict):
            return {name: evil(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [evil(one, key) for one in value]
        fixed = {
            "verdict",
            "result",
            "what",
            "claim",
            "accelerator",
            "series",
            "outcome",
            "status",
            "answer",
            "evidence",
            "folder",
        }
        return value + EVIL if isinstance(value, str) and key not in fixed | {"topology", "cached"} else value

    topology = found.get("topology")
    (folder / what).write_text(json.dumps(evil(found) | ({"topology": topology} if topology else {})))
    kinds = ("markdown", "html", "json") if what in ("reduce.json", "bisect.json") else formats.FORMATS
    for kind in kinds:
        assert isinstance(run_verb(monkeypatch, tmp_path, "report", str(folder), "--format", kind), int), kind
        printed = capsys.readouterr()
        assert not set("\x1b\x07\u202e\x9b\ud800\r") & set(printed.out + printed.err), kind
        assert "owned" in printed.out
    if what == "results.json":
        assert isinstance(run_verb(monkeypatch, tmp_path, "report", "--diff", str(folder), str(folder)), int)
        assert not set("\x1b\x07\u202e\x9b\ud800\r") & set(capsys.readouterr().out)
    run_verb(monkeypatch, tmp_path, "runs")


def test_lone_surrogates_and_control_characters_are_removed_from_keys_too() -> None:
    assert parse_printable_json(b'{"a\\u001b[2J": ["\\ud800", 1, null, "\\u202eb"]}') == {"a": ["\ufffd", 1, None, "b"]}
    with pytest.raises(ValueError, match="at most 64 levels"):
        parse_printable_json(b"[" * 900 + b"]" * 900)


def lines_of(text: str) -> int:
    return len(text.splitlines())


@pytest.mark.parametrize("what", ["results.json", "repro.json", "reduce.json", "bisect.json", "suite.json"])
def test_no_text_of_results_starts_a_new_line(folder: Path, what: str) -> None:
    """A text that looks like another result stays part of the line of its own result."""

    def texts(found: dict[str, Any]) -> list[str]:
        if what != "results.json":
            return [files.markdown(MODELS[what].model_validate(found))]
        of_run = Document.model_validate(found)
        return [markdown(of_run), diff.text(diff.compare(of_run, of_run))]

    found = (
        plain(document(folder, passed(folder), failed(folder)))
        if what == "results.json"
        else bug_results(folder, what.removesuffix(".json"))
    )
    before = texts(found)
    kernels = found.get("kernels", [])
    for number, kernel in enumerate(kernels if isinstance(kernels, list) else kernels.values()):
        if isinstance(kernel, dict):
            kernel |= {"release": FORGED, "origin": FORGED, "name": f"{FORGED} {number}"}
    for case in found.get("scenarios", ()):
        case["name"] += FORGED
        for side in ("base", "patched"):
            case[side]["measures"] = {FORGED: {"value": 1, "unit": FORGED, "source": FORGED}}
            case[side]["balances"] = [{"what": FORGED, "accounted": 1, "real": 2, "difference": -1, "share": 0.5}]
            case[side]["console"] = [{"kind": FORGED, "seconds": None, "text": FORGED, "expected": False}]
    found |= {"run": FORGED, "command": ["testbed", FORGED], "host": found["host"] | {"kernel": FORGED, "qemu": FORGED}}
    if "bug" in found:
        found["bug"] |= {"summary": FORGED, "source": FORGED, "signature": [FORGED]}
    assert [lines_of(text) for text in texts(found)] == [lines_of(text) for text in before]


def test_a_table_has_one_row_for_each_case_whatever_its_name() -> None:
    made = {FORGED: {"no-io-charge": sensitivity.NOTICED}, "gate": {"no-io-charge": sensitivity.NOTICED}}
    other = {"other": made[FORGED], "gate": made["gate"]}
    assert lines_of(sensitivity.markdown(made, "")) == lines_of(sensitivity.markdown(other, ""))


def chain(length: int) -> Stack:
    """Make a stack of devices that each stand on the next, and the last on the first: no device is the lowest."""
    like: dict[str, Any] = dict.fromkeys(
        ("size_bytes", "logical_block_size", "read_ahead_bytes", "offset_bytes", "size_limit_bytes"), 0
    )
    like |= dict.fromkeys(("name", "number", "scheduler", "profile", "backing_file"), "")
    like |= {"read_only": False, "direct_io": False, "partitions": {}, "kind": "dm"}
    blocks = [Block(**like, device=f"/dev/{at}", on=[f"/dev/{(at + 1) % length}"]) for at in range(length)]
    return Stack(cpus="0", controllers="", blocks=blocks, mounts=[], swaps=[], groups=[])


def test_sorting_a_stack_takes_time_proportional_to_its_size() -> None:
    def took_s(length: int) -> float:
        stack, times = chain(length), []
        for _ in range(3):
            began = time.process_time()
            assert len(stack_svg.stack_devices(stack)) == length
            times.append(time.process_time() - began)
        return min(times)

    assert took_s(8000) < 10 * took_s(2000)
