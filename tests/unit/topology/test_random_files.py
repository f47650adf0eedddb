"""Random and damaged files: each is a topology or an error."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import TopologyError
from testbed.topology import Topology
from testbed.topology.load import parse
from tests.support.topologies import GALLERY

TEXTS = [path.read_text() for path in sorted(GALLERY.glob("*.yaml"))]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(TEXTS),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 12), st.text(max_size=6)), max_size=4),
)
def test_a_mutated_topology_is_valid_or_an_error_never_a_traceback(text: str, cuts: list[tuple[int, int, str]]) -> None:
    for at, length, new in cuts:
        at %= len(text) + 1
        text = text[:at] + new + text[at + length :]
    try:
        parse(text, "a.yaml")
    except TopologyError as error:
        assert error.problems


WORDS = st.sampled_from(
    [
        "g0",
        "data",
        "l0",
        "size",
        "type",
        "1G",
        "nvme",
        "${a}",
        "guests",
        "disks",
        "loops",
        "/",
        "extends",
        "matrix",
        "axes",
        "a",
    ]
)


TREES = st.recursive(
    WORDS | st.integers(-5, 5000) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(TREES, TREES)
def test_any_tree_is_a_topology_or_an_error(guest: object, matrix: object) -> None:
    text = json.dumps({"version": 1, "matrix": matrix, "guests": {"g0": guest}})
    try:
        parse(text, "a.yaml")
    except TopologyError as error:
        assert error.problems


DEFAULT = (GALLERY / "default.yaml").read_text()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(DEFAULT)), st.integers(0, 12), st.text(max_size=6)), max_size=4))
def test_a_mutated_default_topology_is_valid_or_an_error_never_a_traceback(cuts: list[tuple[int, int, str]]) -> None:
    text = DEFAULT
    for at, length, new in cuts:
        text = text[:at] + new + text[at + length :]
    try:
        assert isinstance(parse(text, "a.yaml"), Topology)
    except TopologyError as error:
        assert error.problems
