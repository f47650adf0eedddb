"""Checks the table of several runs of a suite."""

from typing import Any

from benchmarks import suites
from testbed.report.bugs.schema import Suite, SuiteKernel, SuiteTest
from testbed.report.partial import Partial


def run(kernel: str, *tests: tuple[str, str, str], partial: Partial | None = None) -> Suite:
    plain = {"group": "", "runtime": "", "details": [], "measured": {}, "folder": ""}
    fields: dict[str, Any] = {
        "run": f"run-{kernel}",
        "kernel": SuiteKernel(name=kernel, release=f"{kernel}.1", origin="o", sha256="s"),
        "reason": "counts",
        "took_s": 60.0,
        "tests": [
            SuiteTest.model_validate(plain | {"name": name, "status": status, "reason": reason})
            for name, status, reason in tests
        ],
        "partial": partial,
    }
    return Suite.model_construct(**fields)


def test_varying_tests_are_listed_and_reasons_name_their_tests() -> None:
    end = Partial(ended=1, wanted=2, at_most=False, what="tests", why="interrupted by SIGINT")
    text = suites.markdown(
        [
            run("a", ("loop/001", "skip", "no | parted"), ("loop/002", "pass", "")),
            run("a", ("loop/001", "skip", "no | parted"), ("loop/002", "fail", "its output differs")),
            run("b", ("loop/001", "pass", ""), partial=end),
        ]
    )
    assert text.splitlines() == [
        "| test | a | b |",
        "|---|---|---|",
        "| loop/001 | skip | pass |",
        "| loop/002 | pass, then fail | not run |",
        "",
        "Not the same in each run:",
        "",
        "- loop/002 on a: pass; fail: its output differs",
        "",
        "| status | why | tests |",
        "|---|---|---|",
        "| fail | its output differs | loop/002 |",
        "| skip | no \\| parted | loop/001 (a) |",
        "",
        "- run-a, a (a.1): counts in 60 s",
        "- run-a, a (a.1): counts in 60 s",
        "- run-b, b (b.1): 1 of 2 tests ended; interrupted by SIGINT; counts in 60 s",
    ]


def test_a_hang_of_a_test_is_a_hang_on_each_of_its_devices() -> None:
    hung = run("a", ("block/042", "hang", "it did not end within 180 s"))
    ended = run("a", ("block/042 (vda)", "pass", ""), ("block/042 (vdb)", "fail", "its output differs"))
    lines = suites.markdown([hung, ended]).splitlines()
    assert lines[2:4] == ["| block/042 (vda) | hang, then pass |", "| block/042 (vdb) | hang, then fail |"]
    assert "- block/042 (vda) on a: hang: it did not end within 180 s; pass" in lines
