"""Between which kernels a bug came or went."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.bisection import Answer, Between, bisecting, most_steps
from testbed.campaign import ordered


def run(good: int, bad: int, answers: dict[int, Answer]) -> tuple[Between, list[int]]:
    search, asked = bisecting(good, bad), []
    number = next(search)
    while True:
        asked.append(number)
        try:
            number = search.send(answers[number])
        except StopIteration as end:
            return end.value, asked


@given(st.integers(2, 100), st.data())
def test_the_change_is_found_in_a_logarithm_of_steps_whether_it_came_or_went(count: int, data: st.DataObject) -> None:
    change = data.draw(st.integers(1, count - 1))
    came = {number: Answer.BAD if number >= change else Answer.GOOD for number in range(count)}
    found, asked = run(0, count - 1, came)
    assert (found.good, found.bad, found.skipped) == (change - 1, change, ())
    assert len(asked) <= 2 + most_steps(0, count - 1)
    went = {number: Answer.GOOD if number >= change else Answer.BAD for number in range(count)}
    found, _ = run(count - 1, 0, went)
    assert (found.bad, found.good) == (change - 1, change)


@given(st.integers(3, 40), st.data())
def test_kernels_that_cannot_be_tried_are_named_where_they_matter(count: int, data: st.DataObject) -> None:
    change = data.draw(st.integers(1, count - 1))
    skipped = data.draw(st.sets(st.integers(1, count - 2)))
    answers = {number: Answer.SKIP if number in skipped else Answer.BAD if number >= change else Answer.GOOD for number in range(count)}
    found, _ = run(0, count - 1, answers)
    assert found.good < change <= found.bad
    assert set(range(found.good + 1, found.bad)) == set(found.skipped) <= skipped


@pytest.mark.parametrize(
    ("bad", "good", "said"), [("good", "good", "bad, it is good"), ("bad", "bad", "good, it is bad"), ("skip", "good", "it is skip")]
)
def test_an_end_that_is_not_what_was_said_is_told(bad: str, good: str, said: str) -> None:
    found, asked = run(0, 5, {5: Answer(bad), 0: Answer(good)})
    assert said in found.wrong and set(asked) <= {0, 5}


def test_kernels_are_ordered_by_version() -> None:
    names = [
        "linux-image-5.10.0-46-cloud-amd64_5.10.262-1_amd64.deb",
        "linux-image-6.1.0-9-cloud-amd64_6.1.27-1_amd64.deb",
        "linux-image-6.1.0-56-cloud-amd64_6.1.176-1_amd64.deb",
        "linux-image-6.12.1_6.12.1-1_amd64.deb",
    ]
    assert [path.name for path in ordered([Path(name) for name in reversed(names)])] == names
    images = ["bzImage-6.17", "bzImage-6.18-rc1", "bzImage-6.18-rc2", "bzImage-6.18-rc10", "bzImage-6.18", "bzImage-6.18-mine"]
    assert [path.name for path in ordered([Path(name) for name in sorted(images)])] == images


def test_neighbours_need_no_steps() -> None:
    assert (most_steps(3, 4), most_steps(0, 0), most_steps(0, 2), most_steps(9, 0)) == (0, 0, 1, 4)
