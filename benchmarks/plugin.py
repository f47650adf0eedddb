"""Times what the pytest plugin adds to a test with a guest, and to collecting many tests."""

from __future__ import annotations

import os
import statistics
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import children
from testbed.guest.factory import open_factory
from testbed.guest.setup import apply
from testbed.host import tempdirs
from testbed.report import live
from testbed.topology import GuestModel

_TESTS = 1000
_SUITE = """\
import pytest
from testbed import Vm

GUEST = {"cpus": 1}


@pytest.mark.testbed_topology(**GUEST)
@pytest.mark.parametrize("number", range(%d))
async def test_a_command(vm: Vm, number: int) -> None:
    await vm.run("true")
"""
_BARE = """\
import pytest


@pytest.mark.parametrize("number", range(%d))
async def test_a_command(tmp_path, number: int) -> None:
    pass
"""


async def measure(*, count: int, kernel: str) -> dict[str, Any]:
    """Return medians in seconds: of one test, as pytest counts its set-up, call and tear-down; of the same guest
    without pytest; and of collecting a thousand tests, the whole command, with and without the plugin's fixtures.
    """
    with tempdirs.temporary() as folder:
        with live.progress(Console(stderr=True)) as progress:
            alone = []
            async with open_factory(progress, kernels=(kernel,)) as factory:
                files = await factory.kernel(kernel)
                for number in range(count + 1):
                    started = time.monotonic()
                    async with factory.guest("g0", GuestModel(cpus=1), files, folder / str(number)) as guest:
                        await apply.apply_steps(guest)
                        await guest.run("true")
                    alone.append(time.monotonic() - started)
            with progress.task(f"{count} tests"):
                tests = await _tests(folder, count + 1, kernel)
        # The first of each is not counted: it makes what is missing.
        one, same = statistics.median(tests[1:]), statistics.median(alone[1:])
        whole, bare = await _collected(folder, _SUITE), await _collected(folder, _BARE)
    return {
        "tests": count,
        "one test, s": round(one, 3),
        "the same guest without pytest, s": round(same, 3),
        "the plugin adds, s": round(one - same, 3),
        f"collecting {_TESTS} tests, s": round(whole, 2),
        f"collecting {_TESTS} without the plugin's fixtures, s": round(bare, 2),
    }


async def _tests(folder: Path, count: int, kernel: str) -> list[float]:
    """Return the seconds of each test, as pytest reports them."""
    _suite(folder, _SUITE % count)
    await _pytest(folder, "--testbed-kernel", kernel, "--junitxml", "junit.xml")
    return [float(case.get("time", "nan")) for case in ET.parse(folder / "junit.xml").iter("testcase")]


async def _collected(folder: Path, text: str) -> float:
    """Return the seconds of the quickest of three."""
    _suite(folder, text % _TESTS)
    found = []
    for _ in range(3):
        started = time.monotonic()
        await _pytest(folder, "--collect-only")
        found.append(time.monotonic() - started)
    return min(found)


def _suite(folder: Path, text: str) -> None:
    (folder / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n", encoding="utf-8"
    )
    (folder / "test_suite.py").write_text(text, encoding="utf-8")


async def _pytest(folder: Path, *words: str) -> None:
    await children.output(
        "pytest", "-q", *words, cwd=folder, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    )
