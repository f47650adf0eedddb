"""Verbs that are ended early, in any way and at any time: their results so far are read, and read as partial."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
from collections.abc import Iterator

import pytest

from tests.support import junit as junit_rules
from tests.support import places
from tests.support.places import Places

DISK = "{type: virtio-blk, size: 64M}"
TINY = f"version: 1\nguests:\n  tiny: {{cpus: 1, memory: 256M, disks: {{data: {DISK}}}}}\n"
BUG = """\
version: 1
summary: it says so
source: made for this test
topology: tiny.yaml
kernels: {shows: [debian-6.1]}
script: "echo here it is"
signature: [{output: ^here it is$}]
"""
# It needs each of its three disks, which takes six candidates to find; two more disks are the root and the modules.
THREE = TINY.replace(f"data: {DISK}", f"a: {DISK}, b: {DISK}, c: {DISK}")
NEEDS = BUG.replace("tiny.yaml", "three.yaml").replace('"echo', '"[ $(ls -d /sys/block/vd* | wc -l) = 5 ] && echo')
TESTS = ("tiny/001", "tiny/003", "tiny/008", "tiny/002", "tiny/007", "tiny/009")
# Command lines, each of which takes several times as long as its first result, and what is printed for each result.
VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "run": (("run", "gate", "-k", "debian-6.1", "--repeat", "4"), r"^[A-Z]+ +gate: "),
    "compare": (("compare", "gate", "--repeat", "3"), r"^[A-Z]+ +gate: "),
    "matrix": (("matrix", "gate", "--kernels", "debian-6.1", "--repeat", "4"), r"^[A-Z]+ +gate: "),
    "suite": (("suite", str(places.ROOT / "tests/data/suite"), *TESTS, "-k", "debian-6.1"), r"^tiny/\d+[^:]*: [a-z]+"),
    "repro": (("repro", "bug.yaml", "--all", "-n", "8", "-j", "1"), r"^debian-6\.1: try \d+: "),
    "reduce": (("reduce", "needs.yaml", "-n", "2", "-j", "1"), r"(still shows|does not show as often|cannot be)"),
    "bisect": (
        ("bisect", "bug.yaml", "--bad", "debian-6.1", "--good", "debian-5.10", "-j", "1"),
        r"^debian-[0-9.]+: (good|bad|skip): ",
    ),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@pytest.fixture
def own() -> Iterator[Places]:
    with places.made() as found:
        found.file("tiny.yaml", TINY)
        found.file("bug.yaml", BUG)
        found.file("three.yaml", THREE)
        found.file("needs.yaml", NEEDS)
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
async def test_an_early_end_keeps_the_results_so_far(own: Places, verb: str) -> None:
    chance = random.Random(f"early end of {verb}")
    words, result = VERBS[verb]
    # Each verb is ended by another signal, the same in each run.
    by = SIGNALS[list(VERBS).index(verb) % len(SIGNALS)]
    child = await own.start(*words)
    assert child.stderr is not None
    told = 0
    async for line in child.stderr:
        if told := bool(re.search(result, line.decode())):
            break
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), chance.uniform(0, 2))
    child.send_signal(by)
    _, err = await child.communicate()
    told += sum(bool(re.search(result, line)) for line in err.decode().splitlines())
    assert told and child.returncode == (-by if by is signal.SIGKILL else 128 + by), err.decode()

    read = await own.run("report", "last", "--json", status=None)
    document = json.loads(read.out)
    partial = document["partial"]
    # A result may have been printed but not yet written when the process was killed.
    assert partial["ended"] >= (told - 1 if by is signal.SIGKILL else told) and partial["what"], (told, partial)
    assert partial["wanted"] is None or partial["ended"] < partial["wanted"]
    assert read.status in (1, 2) and document.get("verdict", document.get("result")) not in (
        "PASS",
        "reproduced",
        "passed",
    )
    (folder,) = own.state.glob("runs/*")
    if by is signal.SIGKILL:
        assert partial["why"].startswith("its process ended without writing why")
    else:
        assert partial["why"] == f"interrupted by {by.name}" and f"{folder}" in err.decode()
        assert partial["why"] in (folder / "report.html").read_text()
        if verb not in ("reduce", "bisect"):
            junit_rules.check((folder / "junit.xml").read_text())
            assert partial["why"] in (folder / "junit.xml").read_text()
    assert partial["why"] in (await own.run("report", "last", status=None)).out
    await own.nothing_left()
