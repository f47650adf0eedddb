"""What control groups leave of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed import allotment
from testbed.allotment import Share, core_limit, free_of, memory_limit, path_of, share
from testbed.units import GIB, MIB


@pytest.mark.parametrize(
    ("groups", "path"),
    [
        ("0::/user.slice/user-0.slice\n", "/user.slice/user-0.slice"),
        ("9:name=systemd:/\n4:memory:/own\n0::/\n", "/"),
        ("0::/a:b\n", "/a:b"),
        ("0::/../../other\n", "/"),
        ("4:memory:/own\n", None),
        ("", None),
    ],
)
def test_the_group_of_the_second_hierarchy_is_found(groups: str, path: str | None) -> None:
    assert path_of(groups) == path


def test_limits_are_numbers_or_none() -> None:
    assert [memory_limit(text) for text in ("max\n", "1073741824\n", "")] == [None, GIB, None]
    said = ("max 100000\n", "200000 100000\n", "250000 100000\n", "50000 100000\n", "", "max", "1 0")
    assert [core_limit(text) for text in said] == [None, 2, 2, 1, None, None, None]


def test_pages_of_files_could_be_had_and_shared_memory_could_not() -> None:
    stat = "anon 100\nfile 70\nshmem 40\ninactive_anon 40\ninactive_file 20\nactive_file 10\nworkingset_restore_file 5\n"
    assert free_of(1000, "170\n", stat) == 1000 - 170 + 30
    assert free_of(100, "170\n", "") == 0


def group(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_the_least_of_a_group_and_those_above_it_counts(tmp_path: Path) -> None:
    assert share(tmp_path, "0::/outer/inner\n") == Share()
    group(tmp_path / "outer", memory_max=f"{3 * GIB}", memory_current=f"{2 * GIB}", memory_stat="inactive_file 0", cpu_max="max 100000")
    group(tmp_path / "outer" / "inner", memory_max="max", cpu_max="300000 100000")
    assert share(tmp_path, "0::/outer/inner\n") == Share(memory_bytes=3 * GIB, free_bytes=GIB, cores=3)
    group(tmp_path / "outer" / "inner", memory_max=f"{GIB}", memory_current=f"{MIB}", memory_stat="", cpu_max="100000 100000")
    assert share(tmp_path, "0::/outer/inner\n") == Share(memory_bytes=GIB, free_bytes=GIB - MIB, cores=1)
    assert share(tmp_path, "0::/outer\n") == Share(memory_bytes=3 * GIB, free_bytes=GIB)
    # As in a container, whose own group is the root of all that it sees.
    group(tmp_path, memory_max=f"{2 * GIB}", memory_current="0", memory_stat="", cpu_max="max")
    assert share(tmp_path, "0::/\n") == Share(memory_bytes=2 * GIB, free_bytes=2 * GIB)


def test_a_machine_has_no_more_than_its_group_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allotment, "_own", Share)
    whole = allotment.memory_bytes(), allotment.free_bytes(), allotment.cores()
    assert whole[0] >= whole[1] > 3 * MIB
    monkeypatch.setattr(allotment, "_own", lambda: Share(memory_bytes=3 * MIB, free_bytes=MIB, cores=1))
    assert (allotment.memory_bytes(), allotment.free_bytes(), allotment.cores()) == (3 * MIB, MIB, 1)
