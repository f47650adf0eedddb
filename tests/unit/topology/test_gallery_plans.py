"""The plan of every shipped topology equals the recorded one: QEMU's argv, the QMP commands, the steps in the guest.

A plan that changes on purpose is recorded anew by this test itself, with TESTBED_RECORD=1 in its environment.
"""

import os
from pathlib import Path

import pytest

from testbed.report.plan_text import describe_plan
from testbed.topology import load_points
from tests.support.values import host

GALLERY = Path(__file__).parents[3] / "topologies"
PLANS = Path(__file__).parents[2] / "data" / "plans"


@pytest.mark.parametrize("file", sorted(GALLERY.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_plan_equals_the_recorded_plan(file: Path) -> None:
    lines = []
    for point, topology in load_points(file).items():
        lines += [f"#### {point}"] if point else []
        for name, model in topology.guests.items():
            lines += describe_plan(host(), name, model, topology.links[name])
    said = "\n".join(lines).replace(str(GALLERY), "TOPOLOGIES") + "\n"
    recorded = PLANS / f"{file.stem}.txt"
    if os.environ.get("TESTBED_RECORD"):
        recorded.parent.mkdir(exist_ok=True)
        recorded.write_text(said)
    assert said == recorded.read_text()


def test_every_recorded_plan_has_its_topology() -> None:
    assert {path.stem for path in PLANS.glob("*.txt")} == {path.stem for path in GALLERY.glob("*.yaml")}
