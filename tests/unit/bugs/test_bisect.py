"""Searches for the two kernels between which a bug appeared or disappeared."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.bugs.bisect_search import BisectAnswer, BisectRange, bisect, most_steps
from testbed.store.kernels.folder_scan import scan_folder
from testbed.store.kernels.versions import sort_by_version


def run(good: int, bad: int, answers: dict[int, BisectAnswer]) -> tuple[BisectRange, list[int]]:
    search, asked = bisect(good, bad), []
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
    came = {number: BisectAnswer.BAD if number >= change else BisectAnswer.GOOD for number in range(count)}
    result, asked = run(0, count - 1, came)
    assert (result.good, result.bad, result.skipped) == (change - 1, change, ())
    assert len(asked) <= 2 + most_steps(0, count - 1)
    went = {number: BisectAnswer.GOOD if number >= change else BisectAnswer.BAD for number in range(count)}
    result, _ = run(count - 1, 0, went)
    assert (result.bad, result.good) == (change - 1, change)


@given(st.integers(3, 40), st.data())
def test_kernels_that_cannot_be_tried_are_named_where_they_matter(count: int, data: st.DataObject) -> None:
    change = data.draw(st.integers(1, count - 1))
    skipped = data.draw(st.sets(st.integers(1, count - 2)))
    answers = {
        number: BisectAnswer.SKIP if number in skipped else BisectAnswer.BAD if number >= change else BisectAnswer.GOOD
        for number in range(count)
    }
    result, _ = run(0, count - 1, answers)
    assert result.good < change <= result.bad
    assert set(range(result.good + 1, result.bad)) == set(result.skipped) <= skipped


@pytest.mark.parametrize(
    ("ends", "middle", "wrong", "asked"),
    [
        (("good", "bad"), "good", "the ends are the other way round", [5, 0]),
        (("good", "good"), "good", "both ends are good", [5, 0, 2]),
        (("bad", "bad"), "bad", "both ends are bad", [5, 0, 2]),
        (("bad", "bad"), "skip", "both ends are bad", [5, 0, 2]),
        # Bad only in the middle, or good only there.
        (("good", "good"), "bad", "it comes and goes", [5, 0, 2]),
        (("bad", "bad"), "good", "it comes and goes", [5, 0, 2]),
        (("skip", "good"), "good", "it cannot be tried", [5]),
        (("bad", "skip"), "good", "it cannot be tried", [5, 0]),
    ],
)
def test_ends_that_are_not_what_was_said_are_told(
    ends: tuple[str, str], middle: str, wrong: str, asked: list[int]
) -> None:
    bad, good = map(BisectAnswer, ends)
    result, spec = run(0, 5, {5: bad, 0: good, 2: BisectAnswer(middle)})
    assert (result.wrong, spec, result.wavers) == (wrong, asked, "comes" in wrong)


@pytest.mark.parametrize("good", [0, 8])
def test_a_bug_that_comes_and_goes_is_not_bisected_to_one_change(good: int) -> None:
    # Good, bad, good and bad again: the search finds one of three changes; the commits that it skipped show the others.
    answers = [BisectAnswer(answer) for answer in ["good", "good", "bad", "bad", "good", "good", "good", "bad", "bad"]]
    if good:
        answers.reverse()
    result, asked = run(good, 8 - good, dict(enumerate(answers)))
    assert result.wavers and result.wrong == "it comes and goes"
    assert len(asked) <= 2 + most_steps(0, 8)


def test_kernels_are_ordered_by_version() -> None:
    names = [
        "linux-image-5.10.0-46-cloud-amd64_5.10.262-1_amd64.deb",
        "linux-image-6.1.0-9-cloud-amd64_6.1.27-1_amd64.deb",
        "linux-image-6.1.0-56-cloud-amd64_6.1.176-1_amd64.deb",
        "linux-image-6.12.1_6.12.1-1_amd64.deb",
    ]
    assert [path.name for path in sort_by_version([Path(name) for name in reversed(names)])] == names
    images = [
        "bzImage-6.17",
        "bzImage-6.18-rc1",
        "bzImage-6.18-rc2",
        "bzImage-6.18-rc10",
        "bzImage-6.18",
        "bzImage-6.18-mine",
    ]
    assert [path.name for path in sort_by_version([Path(name) for name in sorted(images)])] == images


def test_neighbours_need_no_steps() -> None:
    assert (most_steps(3, 4), most_steps(0, 0), most_steps(0, 2), most_steps(9, 0)) == (0, 0, 2, 6)


def left(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_of_what_bindeb_pkg_leaves_only_kernels_are_walked(tmp_path: Path) -> None:
    images = [f"linux-image-6.{minor}.0_6.{minor}.0-1_amd64.deb" for minor in (9, 10, 11)]
    beside = [
        "linux-headers-6.9.0_6.9.0-1_amd64.deb",
        "linux-image-6.9.0-dbg_6.9.0-1_amd64.deb",
        "linux-image-amd64_6.9.1_amd64.deb",
        "linux-libc-dev_6.9.0-1_amd64.deb",
        "linux-upstream_6.9.0-1_amd64.buildinfo",
        "linux-upstream_6.9.0-1_amd64.changes",
    ]
    result = scan_folder(left(tmp_path, *reversed(images), *beside))
    assert result.kernels == tuple(str(tmp_path / name) for name in images)
    assert sorted(file.split(" ")[0] for file in result.others) == beside
    assert "linux-image-6.9.0-dbg_6.9.0-1_amd64.deb (debugging symbols)" in result.others


def test_of_what_make_install_leaves_only_kernels_are_walked(tmp_path: Path) -> None:
    beside = [
        *(
            ".vmlinuz-6.9.0.hmac",
            "System.map-6.9.0",
            "config-6.9.0",
            "initrd.img-6.9.0",
            "vmlinuz-6.9.0.hmac",
            "vmlinuz-6.9.0.old",
        ),
        *("vmlinuz", "vmlinuz.old"),
    ]
    left(tmp_path, "vmlinuz-6.10.0", "vmlinuz-6.9.0", *beside)
    (tmp_path / "bzImage-6.9.0").hardlink_to(tmp_path / "vmlinuz-6.9.0")
    (tmp_path / "lib").mkdir()
    result = scan_folder(tmp_path)
    # Neither is a bzImage: both are tried, then skipped.
    assert [Path(file).name for file in result.kernels] == ["bzImage-6.9.0", "vmlinuz-6.10.0"]
    assert {file.split(" ")[0] for file in result.others} == {*beside, "vmlinuz-6.9.0"}
    assert (
        "vmlinuz-6.9.0 (the same as bzImage-6.9.0)" in result.others
        and "vmlinuz (no version in its name)" in result.others
    )


def test_modules_that_are_packages_of_their_own_go_with_their_kernel(tmp_path: Path) -> None:
    version = "_7.2.13-1_amd64.deb"
    names = [f"linux-{kind}-7.2.13+deb14-amd64{version}" for kind in ("binary", "modules", "modules-extra")]
    result = scan_folder(left(tmp_path, *names, f"linux-modules-7.2.12{version}"))
    assert result.kernels == (":".join(str(tmp_path / name) for name in names),)
    assert result.others == (f"linux-modules-7.2.12{version} (a package without a kernel)",)
