"""Parts of a topology that a kernel's configuration does not support, reported before any guest starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from testbed.bugs import load as load_bug
from testbed.errors import TopologyError, UsageError
from testbed.hardware.commands import MACHINE_VERBS
from testbed.hardware.disk_kinds import DISK_KINDS
from testbed.store import cache
from testbed.store.kernels import config_fragments, kernel_files
from testbed.store.kernels.table import KernelTable, Series, shipped_table
from testbed.topology import kernel_abilities, kernel_features, load_points
from testbed.topology.cgroups import Cgroup, Controller
from testbed.topology.filesystems import FILESYSTEMS
from testbed.topology.kernel_abilities import KernelAbilities
from testbed.topology.model import GuestModel
from testbed.topology.storage import Dm, Md
from tests.support.values import host_limits

TABLE = shipped_table()
HOST_BYTES = 1 << 40
# Options of Debian's cloud kernels 5.10 to 6.12, without f2fs and io.latency.
CLOUD = """\
CONFIG_VIRTIO_BLK=m
CONFIG_BLK_DEV_NVME=y
CONFIG_SCSI_VIRTIO=m
CONFIG_BLK_DEV_SD=m
CONFIG_BLK_DEV_LOOP=m
CONFIG_EXT4_FS=y
CONFIG_XFS_FS=m
CONFIG_MEMCG=y
CONFIG_BLK_CGROUP=y
CONFIG_BLK_CGROUP_IOCOST=y
CONFIG_BLK_DEV_THROTTLING=y
# CONFIG_BLK_CGROUP_IOLATENCY is not set
# CONFIG_F2FS_FS is not set
"""
WANTS = """\
version: 1
guests:
  g0:
    KERNEL
    disks: {data: {type: nvme, size: 1G}, flash: {type: virtio-blk, size: 1G}}
    filesystems: {flash: {type: f2fs}}
    loops: {l0: {backing: data/x.img, filesystem: xfs, size: 64M}}
    cgroups:
      a: {io.latency: {data: 75}, io.max: {data: {rbps: 1M}}, memory.max: 64M}
"""
LACKS = [
    "6:33: guests.g0.filesystems.flash.type: expected a kernel that can do this; the configuration of NAME lacks "
    "CONFIG_F2FS_FS",
    "9:11: guests.g0.cgroups.a.io.latency: expected a kernel that can do this; the configuration of NAME lacks "
    "CONFIG_BLK_CGROUP_IOLATENCY",
]


def cached(root: Path, config: str | None, *, has_modules: bool = True, table: KernelTable = TABLE) -> None:
    """debian-6.1 in a cache."""
    folder = kernel_files.kernel_folder(table.rows["debian-6.1"], root)
    folder.mkdir(parents=True)
    meta = {"release": "6.1.0-x", "origin": "here", "sha256": "0", "early_modules": [], "has_modules": has_modules}
    (folder / cache.META).write_text(json.dumps(meta))
    if config is not None:
        (folder / "config").write_text(config)


def problems(tmp_path: Path, kernel: str, abilities: KernelAbilities) -> list[str]:
    file = tmp_path / "t.yaml"
    file.write_text(WANTS.replace("KERNEL", f"kernel: {kernel}" if kernel else "sample: 1s"))
    try:
        load_points(file, limits=host_limits(HOST_BYTES), check_kernels=abilities.mistakes)
    except TopologyError as error:
        return [str(problem).removeprefix(f"{file}:") for problem in error.problems]
    return []


def test_parts_that_the_kernel_does_not_support_are_mistakes_with_a_place(tmp_path: Path) -> None:
    cached(tmp_path, CLOUD)
    assert problems(tmp_path, "debian-6.1", KernelAbilities(TABLE, tmp_path)) == [
        line.replace("NAME", "debian-6.1 (6.1.0-x)") for line in LACKS
    ]
    # The kernel of --kernel, the default, and a file that names no kernel.
    assert len(problems(tmp_path, "debian-6.12", KernelAbilities(TABLE, tmp_path, "debian-6.1"))) == 2
    assert len(problems(tmp_path, "", KernelAbilities(TABLE, tmp_path, default="debian-6.1"))) == 2
    assert problems(tmp_path, "", KernelAbilities(TABLE, tmp_path)) == []


def test_nothing_is_reported_for_a_kernel_without_a_known_configuration(tmp_path: Path) -> None:
    assert problems(tmp_path, "debian-6.1", KernelAbilities(TABLE, tmp_path)) == []
    cached(tmp_path, None)
    assert problems(tmp_path, "debian-6.1", KernelAbilities(TABLE, tmp_path)) == []


def test_a_kernel_without_modules_supports_only_built_in_options(tmp_path: Path) -> None:
    cached(tmp_path, CLOUD, has_modules=False)
    said = problems(tmp_path, "debian-6.1", KernelAbilities(TABLE, tmp_path))
    assert any("CONFIG_VIRTIO_BLK, built in, for it comes without modules" in line for line in said)
    assert not any("CONFIG_BLK_DEV_NVME" in line for line in said)


def test_each_kernel_of_a_bug_file_is_checked(tmp_path: Path) -> None:
    cached(tmp_path, CLOUD)
    file = tmp_path / "bug.yaml"
    guest = "{disks: {data: {type: nvme, size: 1G}}, cgroups: {a: {io.latency: {data: 75}}}}"
    file.write_text(
        f"version: 1\nsummary: a bug\nscript: 'true'\nsignature: [{{status: 1}}]\nkernels: "
        f"{{shows: [debian-5.10], clean: [debian-6.1]}}\n"
        f"topology: {{guests: {{g0: {guest}}}}}\n"
    )
    with pytest.raises(TopologyError) as caught:
        load_bug(file, limits=host_limits(HOST_BYTES), check_kernels=KernelAbilities(TABLE, tmp_path).guest_mistakes)
    (problem,) = caught.value.problems
    assert problem.path == "topology.guests.g0.cgroups.a.io.latency" and problem.line == 6
    assert "the configuration of debian-6.1 (6.1.0-x) lacks CONFIG_BLK_CGROUP_IOLATENCY" in problem.message


def test_no_guest_starts_on_a_kernel_that_does_not_support_its_topology(tmp_path: Path) -> None:
    cached(tmp_path, CLOUD)
    files = kernel_files.read_folder(
        TABLE.rows["debian-6.1"], kernel_files.kernel_folder(TABLE.rows["debian-6.1"], tmp_path)
    )
    assert files.series is Series.AFTER
    (guest,) = load_points(_file(tmp_path))[""].guests.values()
    with pytest.raises(
        UsageError,
        match=r"filesystems\.flash\.type: expected a kernel .*\n  cgroups\.a\.io\.latency: expected a kernel",
    ):
        kernel_abilities.check_kernels(guest, files)
    kernel_abilities.check_kernels(guest.model_copy(update={"cgroups": {}, "filesystems": {}}), files)


def _file(tmp_path: Path) -> Path:
    (tmp_path / "t.yaml").write_text(WANTS.replace("KERNEL", "sample: 1s"))
    return tmp_path / "t.yaml"


def test_every_kind_of_part_has_a_row_of_options() -> None:
    assert kernel_features.DISKS.keys() == DISK_KINDS.keys()
    assert kernel_features.FILESYSTEMS.keys() == FILESYSTEMS.keys()
    assert kernel_features.DM.keys() == set(get_args(Dm.model_fields["type"].annotation))
    assert kernel_features.MD.keys() == set(get_args(Md.model_fields["level"].annotation))
    assert kernel_features.CONTROLLERS.keys() == set(get_args(Controller))
    assert kernel_features.MACHINE.keys() == MACHINE_VERBS.keys()
    known = {field for field in Cgroup.model_fields if field.partition("_")[0] in kernel_features.CONTROLLERS}
    assert known == set(Cgroup.model_fields) - {"controllers"} and kernel_features.CGROUP_KEYS.keys() <= known


def test_every_part_of_the_language_needs_options() -> None:
    guest = GuestModel.model_validate(
        {
            "disks": {
                "a": {"type": "virtio-scsi", "size": "1G", "partitions": [{"size": "512M"}, {}]},
                "z": {"type": "nvme", "size": "1G", "zoned": {"zone-size": "64M"}, "namespaces": {"n": {"size": "1G"}}},
                "b": {"type": "virtio-blk", "size": "1G"},
                "c": {"type": "virtio-blk", "size": "1G"},
            },
            "filesystems": {"m": {"type": "tmpfs"}},
            "dm": {"d": {"type": "crypt", "on": ["n"]}},
            "md": {"r": {"level": "raid1", "on": ["b", "c"]}},
            "swaps": {"s": {"on": "a-p1"}},
            "cgroups": {"g": {"cpu.max": "50000 100000", "pids.max": 5, "io.weight": 100}},
            "timeline": [{"do": "memory 256M", "at": "1s"}, {"do": "cpus 1", "at": "1s"}],
        }
    )
    lacks = " ".join(said for _, said in kernel_features.lacking_features(guest, {}, has_modules=True))
    for option in (
        "SCSI_VIRTIO",
        "BLK_DEV_SD",
        "EFI_PARTITION",
        "BLK_DEV_NVME",
        "BLK_DEV_ZONED",
        "VIRTIO_BLK",
        "TMPFS",
        "DM_CRYPT",
        "MD_RAID1",
    ):
        assert f"CONFIG_{option}" in lacks
    for option in ("SWAP", "CFS_BANDWIDTH", "CGROUP_PIDS", "BLK_CGROUP_IOCOST", "VIRTIO_BALLOON", "HOTPLUG_CPU"):
        assert f"CONFIG_{option}" in lacks
    everything = {
        name: config_fragments.Option(value="y", where="")
        for name in lacks.replace("CONFIG_", "").split()
        if name not in ("and", "or")
    }
    assert list(kernel_features.lacking_features(guest, everything, has_modules=False)) == []
