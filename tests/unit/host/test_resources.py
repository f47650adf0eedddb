"""The memory and cores of a machine that control groups allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.host import resources
from testbed.host.resources import CgroupLimits, cgroup_limits, core_limit, free_in_group, memory_limit
from testbed.units import GIB, MIB

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
# As in a container of version 1, which sees its own groups alone.
BOUND = "35 31 0:32 /docker/abc /sys/fs/cgroup/mem\\040ory ro - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("mounts", "groups", "paths"),
    [
        (UNIFIED, "0::/user.slice/user-0.slice\n", {"/sys/fs/cgroup": "/user.slice/user-0.slice"}),
        (UNIFIED, "9:name=systemd:/\n4:memory:/own\n0::/\n", {"/sys/fs/cgroup": "/"}),
        (UNIFIED, "0::/a:b\n", {"/sys/fs/cgroup": "/a:b"}),
        (UNIFIED, "0::/../../other\n", {"/sys/fs/cgroup": "/"}),
        (UNIFIED, "4:memory:/own\n", {"/sys/fs/cgroup": None}),
        (UNIFIED, "", {"/sys/fs/cgroup": None}),
        (
            HYBRID,
            "9:name=systemd:/s\n4:memory:/m/n\n2:cpu,cpuacct:/c\n0::/u\n",
            {
                "/sys/fs/cgroup/cpu,cpuacct": "/c",
                "/sys/fs/cgroup/memory": "/m/n",
                "/sys/fs/cgroup/systemd": "/s",
                "/sys/fs/cgroup/unified": "/u",
            },
        ),
        (BOUND, "4:memory:/docker/abc/inner\n", {"/sys/fs/cgroup/mem ory": "/inner"}),
        (BOUND, "4:memory:/\n", {"/sys/fs/cgroup/mem ory": "/"}),
        ("nonsense\n\n1 2 - cgroup\n", "0::/\n", {}),
    ],
)
def test_the_cgroup_in_each_hierarchy_is_found(mounts: str, groups: str, paths: dict[str, str | None]) -> None:
    found = {str(one.folder): resources.cgroup_path(groups, one) for one in resources.hierarchies(mounts)}
    assert {folder: path and str(path) for folder, path in found.items()} == paths


def test_limits_are_numbers_or_none() -> None:
    assert [memory_limit(text) for text in ("max\n", "1073741824\n", "")] == [None, GIB, None]
    said = ("max 100000\n", "200000 100000\n", "250000 100000\n", "50000 100000\n", "", "max", "1 0")
    assert [core_limit(text) for text in said] == [None, 2, 2, 1, None, None, None]


def test_page_cache_counts_as_free_and_shared_memory_does_not() -> None:
    stat = (
        "anon 100\nfile 70\nshmem 40\ninactive_anon 40\ninactive_file 20\nactive_file 10\nworkingset_restore_file 5\n"
    )
    assert free_in_group(1000, "170\n", stat) == 1000 - 170 + 30
    assert free_in_group(100, "170\n", "") == 0
    first = "cache 70\ninactive_file 20\nactive_file 10\ntotal_inactive_file 200\ntotal_active_file 100\n"
    assert free_in_group(1000, "500\n", first) == 1000 - 500 + 300


def group(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def second(tmp_path: Path, groups: str) -> CgroupLimits:
    return cgroup_limits(UNIFIED, groups, tmp_path)


def test_the_smallest_limit_of_a_cgroup_and_its_ancestors_counts(tmp_path: Path) -> None:
    root = tmp_path / "sys/fs/cgroup"
    root.mkdir(parents=True)
    assert second(tmp_path, "0::/outer/inner\n") == CgroupLimits()
    group(
        root / "outer",
        memory_max=f"{3 * GIB}",
        memory_current=f"{2 * GIB}",
        memory_stat="inactive_file 0",
        cpu_max="max 100000",
    )
    group(root / "outer" / "inner", memory_max="max", cpu_max="300000 100000")
    assert second(tmp_path, "0::/outer/inner\n") == CgroupLimits(memory_bytes=3 * GIB, free_bytes=GIB, cores=3)
    group(
        root / "outer" / "inner", memory_max=f"{GIB}", memory_current=f"{MIB}", memory_stat="", cpu_max="100000 100000"
    )
    assert second(tmp_path, "0::/outer/inner\n") == CgroupLimits(memory_bytes=GIB, free_bytes=GIB - MIB, cores=1)
    assert second(tmp_path, "0::/outer\n") == CgroupLimits(memory_bytes=3 * GIB, free_bytes=GIB)
    # As in a container, whose own group is the root of all that it sees.
    group(root, memory_max=f"{2 * GIB}", memory_current="0", memory_stat="", cpu_max="max")
    assert second(tmp_path, "0::/\n") == CgroupLimits(memory_bytes=2 * GIB, free_bytes=2 * GIB)


def first(folder: Path, **files: str) -> None:
    """Make the files of a cgroup of version 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


NO_LIMIT = "9223372036854771712\n"


def test_limits_of_cgroup_version_1_count_too(tmp_path: Path) -> None:
    memory, cpu = tmp_path / "sys/fs/cgroup/memory", tmp_path / "sys/fs/cgroup/cpu,cpuacct"
    groups = "4:memory:/outer/inner\n2:cpu,cpuacct:/c\n0::/\n"
    first(memory, memory_limit_in_bytes=NO_LIMIT, memory_usage_in_bytes="5", memory_stat="", memory_use_hierarchy="1\n")
    first(
        memory / "outer/inner",
        memory_limit_in_bytes=NO_LIMIT,
        memory_usage_in_bytes="5",
        memory_stat="",
        memory_use_hierarchy="1\n",
    )
    first(cpu / "c", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert cgroup_limits(HYBRID, groups, tmp_path) == CgroupLimits()
    first(cpu / "c", cpu_cfs_quota_us="250000\n", cpu_cfs_period_us="100000\n")
    stat = "inactive_file 1\ntotal_inactive_file 1048576\n"
    outer = {"memory_limit_in_bytes": f"{2 * GIB}\n", "memory_usage_in_bytes": f"{GIB}\n", "memory_stat": stat}
    first(memory / "outer", **outer, memory_use_hierarchy="1\n")
    assert cgroup_limits(HYBRID, groups, tmp_path) == CgroupLimits(memory_bytes=2 * GIB, free_bytes=GIB + MIB, cores=2)
    first(memory / "outer", memory_use_hierarchy="0\n")
    assert cgroup_limits(HYBRID, groups, tmp_path) == CgroupLimits(cores=2), "a limit that is of no group below"


def test_the_mounts_of_this_machine_are_parsed() -> None:
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    mounted = [line.split()[4] for line in text.splitlines() if line.partition(" - ")[2].startswith("cgroup")]
    assert [str(one.folder) for one in resources.hierarchies(text)] == mounted


def test_the_machine_counts_as_no_larger_than_its_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_own_limits", CgroupLimits)
    whole = resources.memory_bytes(), resources.free_bytes(), resources.cores()
    assert whole[0] >= whole[1] > 3 * MIB
    monkeypatch.setattr(resources, "_own_limits", lambda: CgroupLimits(memory_bytes=3 * MIB, free_bytes=MIB, cores=1))
    assert (resources.memory_bytes(), resources.free_bytes(), resources.cores()) == (3 * MIB, MIB, 1)
