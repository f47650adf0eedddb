"""Checks the judgement of a soak: growth is reported, and a rise that happens once is no growth."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import Held

ROOT = Path(__file__).parents[2]
FLAT = Held(
    memory_bytes=60_000_000,
    python_blocks=300_000,
    malloc_bytes=17_000_000,
    files=12,
    processes=0,
    tasks=1,
    disk_bytes=8000,
)
# Counts how often the table grows while names come and go, in a program with as many own names as the testbed.
NAMES = """\
import sys
from benchmarks import soak
own = [sys.intern(f"own, {{number}}") for number in range(30_000)]
{before}
steps, last = 0, soak._malloced()
for number in range(250_000):
    sys.intern(f"another, {{number}}")
    if number % 100 == 0:
        now = soak._malloced()
        steps, last = steps + (now - last > 100_000), now
print(steps)
"""


def steps(before: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", NAMES.format(before=before)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("memory_bytes", 20_000),
        ("python_blocks", 15),
        ("malloc_bytes", 1000),
        ("files", 1),
        ("processes", 1),
        ("tasks", 1),
        ("disk_bytes", 1),
    ],
)
def test_growth_is_reported(name: str, each: int) -> None:
    kept = [replace(FLAT, **{name: getattr(FLAT, name) + round_ * each}) for round_ in range(1000)]
    (said,) = soak.growing(kept)
    assert said.startswith(f"{name}: ")


def test_varying_values_are_no_growth() -> None:
    kept = [
        replace(
            FLAT,
            files=12 + number % 3,
            malloc_bytes=FLAT.malloc_bytes + number % 7 * 1000,
            memory_bytes=60_000_000 + number * 1000,
        )
        for number in range(999)
    ]
    assert soak.growing(kept) == ()


def test_the_table_of_interned_names_is_grown_first() -> None:
    assert steps("") >= 1
    assert steps("soak.age_names()") == 0
