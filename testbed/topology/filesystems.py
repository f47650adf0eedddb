"""The table of filesystems that can hold a backing file."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """How to make and mount a filesystem.

    `mkfs`: the command, to which the device is appended; empty for tmpfs. `options`: mount options. `on_device`: False
    for tmpfs. `least_bytes`: the smallest device that mkfs accepts.
    """

    mkfs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    on_device: bool = True
    least_bytes: int = 0


FILESYSTEMS: dict[str, Filesystem] = {
    # mkfs writes inode tables and journal, so that no kernel thread does it during a measurement (mke2fs(8), ext4(5)).
    "ext4": Filesystem(
        mkfs=("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
        options=("noatime", "noinit_itable"),
        least_bytes=8 * MIB,
    ),
    # xfsprogs 5.19 and later refuse smaller devices.
    "xfs": Filesystem(mkfs=("mkfs.xfs", "-q", "-f"), options=("noatime",), least_bytes=300 * MIB),
    # btrfs-progs 6.2: 109 MiB.
    "btrfs": Filesystem(mkfs=("mkfs.btrfs", "-q", "-f"), options=("noatime",), least_bytes=128 * MIB),
    "f2fs": Filesystem(mkfs=("mkfs.f2fs", "-q", "-f"), options=("noatime",), least_bytes=64 * MIB),
    "tmpfs": Filesystem(on_device=False),
}
