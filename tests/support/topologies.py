"""Topology texts in tests: the mistakes that are found in one, and the guest of one."""

from pathlib import Path

import pytest

from testbed.errors import TopologyError
from testbed.topology import GuestModel, load_points
from testbed.topology.load import parse

GALLERY = Path(__file__).parents[2] / "topologies"


def errors(text: str, path: Path | None = None) -> list[str]:
    """List the mistakes in a text; `path`: the file to write it to first, for one that extends another."""
    with pytest.raises(TopologyError) as caught:
        if path is None:
            parse(text, "a.yaml")
        else:
            path.write_text(text)
            load_points(path)
    return [str(problem) for problem in caught.value.problems]


def guest_of(text: str) -> GuestModel:
    """Parse the indented keys of the guest `g0`."""
    return parse(f"version: 1\nguests:\n  g0:\n{text}", "a.yaml").guests["g0"]
