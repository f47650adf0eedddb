"""A tiny suite of shell tests of our own in the format of blktests: each test runs in its own guest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).parents[2] / "data" / "suite"
TOPOLOGY = "version: 1\nguests:\n  g0:\n    cpus: 1\n    disks:\n      spare: {type: nvme, size: 64M}\n"


def suite(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "spare.yaml"
    file.write_text(TOPOLOGY)
    options = ("--topology", str(file), "--kernel", "debian-6.1", "--json", "--quiet")
    return subprocess.run(
        [sys.executable, "-m", "testbed", "suite", str(SUITE), *words, *options],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TESTBED_STATE": str(tmp_path / "state")},
    )


@pytest.mark.slow
def test_each_test_is_told_as_what_it_came_to(tmp_path: Path) -> None:
    done = suite(tmp_path, "tiny", "--test-disk", "spare", "--timeout", "15", "--quick", "9")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    found = {(one["test"], one["where"]): one for one in told["tests"]}
    assert {test: one["status"] for test, one in found.items()} == {
        ("tiny/001", ""): "pass",
        ("tiny/002", ""): "fail",
        ("tiny/003", ""): "skip",
        ("tiny/004", ""): "hang",
        ("tiny/005", ""): "lost",
        ("tiny/006", "nvme0n1"): "fail",
        ("tiny/007", "first"): "pass",
        ("tiny/007", "second"): "skip",
        ("tiny/008", ""): "pass",
        ("tiny/009", ""): "fail",
        ("tiny/010", "nvme0n1"): "pass",
        ("tiny/011", ""): "fail",
    }, found
    assert found["tiny/001", ""]["measured"] == {"read iops": "7"}
    assert "-expected" in found["tiny/002", ""]["details"] and "+got" in found["tiny/002", ""]["details"]
    assert found["tiny/003", ""]["reason"] == "no_such_program is not installed"
    assert any("sleep 1000" in line for line in found["tiny/004", ""]["details"])
    assert (
        "panic" in found["tiny/005", ""]["reason"]
        and found["tiny/006", "nvme0n1"]["reason"] == "it exited with status 3"
    )
    assert found["tiny/007", "second"]["reason"] == "second is not for this kernel (6); nor for any other"
    assert any("WARNING: said by a test" in line for line in found["tiny/009", ""]["details"])
    guests = tmp_path / "state/runs" / told["run"] / "guests"
    # A line of 900 kB once took hours. A stranger's test leaves its record and its output.
    assert {path.name for path in (guests / "tiny-011/results").rglob("*")} == {"nodev", "tiny", "011", "011.out.bad"}
    assert not any(path.is_symlink() for path in guests.rglob("*"))
    assert (guests / "tiny-005/g0/console.log").exists()
    # The run is listed, and its results are shown again.
    environment = {**os.environ, "TESTBED_STATE": str(tmp_path / "state")}
    again = (sys.executable, "-m", "testbed")
    listed = subprocess.run([*again, "runs", "--json"], capture_output=True, text=True, env=environment)
    (run,) = json.loads(listed.stdout)["runs"]
    assert (run["verdict"], run["cases"], run["command"][0]) == ("failed", 12, "suite")
    report = subprocess.run([*again, "report", "last", "-f", "junit"], capture_output=True, text=True, env=environment)
    assert report.returncode == 1 and 'tests="12" failures="6" errors="0" skipped="2"' in report.stdout
    report = subprocess.run([*again, "report", "last"], capture_output=True, text=True, env=environment)
    assert "| tiny/005 | lost |" in report.stdout
    assert {path.name for path in guests.parent.iterdir()} >= {"suite.json", "report.html", "junit.xml", "results.ktap"}
    assert (guests / "tiny-002/results/nodev/tiny/002.out.bad").read_text() == "got\n"


@pytest.mark.slow
def test_a_suite_of_skips_passes_nothing_and_mistakes_are_said(tmp_path: Path) -> None:
    skipped = suite(tmp_path, "tiny/003", "tiny/006")
    assert skipped.returncode == 4, skipped.stderr
    assert "--test-disk" in json.loads(skipped.stdout)["tests"][1]["reason"]
    wrong = suite(tmp_path, "tiny/003", "--test-disk", "nosuch")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "--test-disk: expected one of the topology's disks (spare), got 'nosuch'" in wrong.stderr
    assert len(list((tmp_path / "state/runs").iterdir())) == 1
