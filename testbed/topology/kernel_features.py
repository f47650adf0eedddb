"""The kernel options that each part of a topology needs: one row per part. Pure.

Only options that are certainly needed are listed. An option that has another name in older kernels, or that another
option can replace, is listed as a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from testbed.store.kernels.config_fragments import Option
from testbed.topology.base import KeyPath
from testbed.topology.disks import Disk, Nvme
from testbed.topology.graph import NamespaceOf, PartitionOf, build_graph
from testbed.topology.model import GuestModel
from testbed.topology.storage import Dm, Filesystem, Loop, Md, Swap

# A list of choices; of each choice, one option is enough.
Options = tuple[tuple[str, ...], ...]

DISKS: Mapping[str, Options] = {
    "virtio-blk": (("VIRTIO_BLK",),),
    "nvme": (("BLK_DEV_NVME",),),
    "virtio-scsi": (("SCSI_VIRTIO",), ("BLK_DEV_SD",)),
}
ZONED: Options = (("BLK_DEV_ZONED",),)
PARTITIONS: Options = (("EFI_PARTITION",),)
FILESYSTEMS: Mapping[str, Options] = {
    "ext4": (("EXT4_FS",),),
    "xfs": (("XFS_FS",),),
    "btrfs": (("BTRFS_FS",),),
    "f2fs": (("F2FS_FS",),),
    "tmpfs": (("TMPFS",),),
}
LOOP: Options = (("BLK_DEV_LOOP",),)
SWAP: Options = (("SWAP",),)
DM: Mapping[str, Options] = {"linear": (("BLK_DEV_DM",),), "crypt": (("BLK_DEV_DM",), ("DM_CRYPT",), ("CRYPTO_XTS",))}
MD: Mapping[str, Options] = {"raid0": (("BLK_DEV_MD",), ("MD_RAID0",)), "raid1": (("BLK_DEV_MD",), ("MD_RAID1",))}
CONTROLLERS: Mapping[str, Options] = {
    "cpu": (("CGROUP_SCHED",),),
    "io": (("BLK_CGROUP",),),
    "memory": (("MEMCG",),),
    "pids": (("CGROUP_PIDS",),),
}
# By field of `Cgroup`, in addition to the options of its controller (block/Kconfig, init/Kconfig).
CGROUP_KEYS: Mapping[str, Options] = {
    "memory_swap_max": (("SWAP",),),
    "cpu_max": (("CFS_BANDWIDTH",),),
    "cpu_weight": (("FAIR_GROUP_SCHED", "GROUP_SCHED_WEIGHT"),),
    "io_max": (("BLK_DEV_THROTTLING",),),
    # BFQ has a file of its own, io.bfq.weight.
    "io_weight": (("BLK_CGROUP_IOCOST",),),
    "io_latency": (("BLK_CGROUP_IOLATENCY",),),
    "io_cost_model": (("BLK_CGROUP_IOCOST",),),
    "io_cost_qos": (("BLK_CGROUP_IOCOST",),),
}
MACHINE: Mapping[str, Options] = {"memory": (("VIRTIO_BALLOON",),), "cpus": (("HOTPLUG_CPU",),)}


def needed_features(guest: GuestModel) -> Iterator[tuple[KeyPath, Options]]:
    """List the parts of a guest that need kernel options: the place below the guest's keys, and the options."""
    for node in build_graph(guest).nodes.values():
        match node.model:
            case Disk() as disk:
                yield (*node.where, "type"), DISKS[disk.type]
                if isinstance(disk, Nvme) and disk.zoned is not None:
                    yield (*node.where, "zoned"), ZONED
            case NamespaceOf(namespace=namespace) if namespace.zoned is not None:
                yield (*node.where, "zoned"), ZONED
            case PartitionOf():
                yield node.where, PARTITIONS
            case Filesystem(type=kind):
                key = "type" if node.where[0] == "filesystems" else "filesystem"
                yield (*node.where, key), FILESYSTEMS[kind]
            case Loop():
                yield node.where, LOOP
            case Swap():
                yield node.where, SWAP
            case Dm(type=kind):
                yield (*node.where, "type"), DM[kind]
            case Md(level=level):
                yield (*node.where, "level"), MD[level]
    for path, group in guest.cgroups.items():
        for controller in group.controllers:
            yield ("cgroups", path, "controllers"), CONTROLLERS[controller]
        for field in sorted(group.model_fields_set - {"controllers"}):
            yield (
                ("cgroups", path, field.replace("_", ".")),
                (*CONTROLLERS[field.partition("_")[0]], *CGROUP_KEYS.get(field, ())),
            )
    for number, entry in enumerate(guest.timeline):
        yield ("timeline", number), MACHINE.get(entry.verb, ())


def lacking_features(
    guest: GuestModel, config: Mapping[str, Option], *, has_modules: bool
) -> Iterator[tuple[KeyPath, str]]:
    """List the options that a guest needs and a configuration lacks, as they are written there.

    `has_modules`: the kernel comes with its modules, so that `m` is enough.
    """
    enough = ("y", "m") if has_modules else ("y",)
    for where, options in needed_features(guest):
        missing = [
            choices
            for choices in options
            if not any(name in config and config[name].value in enough for name in choices)
        ]
        if missing:
            yield where, " and ".join(" or ".join(f"CONFIG_{name}" for name in choices) for choices in missing)
