"""Runs a small part of `./tb fuzz` for each target: its samples, its earlier findings, and some mutations of both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import mutate, watch
from tests.fuzz.targets import TARGETS, Target, found, samples

_INPUTS = 150


def wrong(target: Target, data: bytes) -> str:
    finding = watch.look(target, data).finding
    return "" if finding is None else f"{finding.told}\nof {data[:300]!r}"


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_handles_samples_findings_and_mutations(name: str) -> None:
    """Uses the same inputs each time."""
    target, seeds = TARGETS[name], [path.read_bytes() for path in samples(name)]
    assert seeds, f"expected a sample of it at least, in tests/fuzz/corpus/{name}"
    for data in (b"", *seeds, *(path.read_bytes() for path in found(name))):
        assert wrong(target, data) == ""
    rng = random.Random(name)
    for number in range(_INPUTS):
        data = mutate.mutated(rng.choice(seeds), rng, target.words, target.mutators)
        if number % 50 == 49:
            data = mutate.swollen(data, rng, 8192)
        assert wrong(target, data) == ""


def test_every_sample_and_finding_belongs_to_a_target() -> None:
    here = Path(mutate.__file__).parent
    assert {path.name for folder in ("corpus", "findings") for path in (here / folder).glob("*")} <= TARGETS.keys()
    assert all(path.is_file() for name in TARGETS for path in found(name))
