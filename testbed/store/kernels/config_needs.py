"""Lists the options that a kernel's configuration must have for guests and scenarios, each with what needs it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from testbed.store.kernels.config_fragments import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """`options`: one of them is enough, built in or as a module. `why`: what needs it."""

    options: tuple[str, ...]
    why: str
    builtin: bool = False


def _all(why: str, *options: str, builtin: bool = False) -> tuple[Requirement, ...]:
    return tuple(Requirement(options=(option,), why=why, builtin=builtin) for option in options)


# No guest boots without these.
BOOT = (
    *_all("programs are 64-bit ELF files and scripts", "64BIT", "BINFMT_ELF", "BINFMT_SCRIPT", builtin=True),
    *_all("it starts from an initramfs", "BLK_DEV_INITRD", builtin=True),
    *_all("the console and the agent's port are serial", "TTY", "SERIAL_8250", "SERIAL_8250_CONSOLE", builtin=True),
    *_all("its disks are plugged into PCI Express", "PCI", "PCI_MSI", "HOTPLUG_PCI", "HOTPLUG_PCI_ACPI", builtin=True),
    *_all(
        "/dev, /proc, /sys, /run and cgroups are mounted",
        "DEVTMPFS",
        "PROC_FS",
        "SYSFS",
        "TMPFS",
        "CGROUPS",
        builtin=True,
    ),
    *_all("its root is ext4 on virtio-blk", "VIRTIO_PCI", "VIRTIO_BLK", "EXT4_FS"),
    *_all("SSH needs a network, terminals and random numbers", "NET", "INET", "UNIX", "UNIX98_PTYS", builtin=True),
    *_all("SSH needs a network", "VIRTIO_NET"),
    *_all("programs wait by them", "FUTEX", "EPOLL", "POSIX_TIMERS", "MULTIUSER", builtin=True),
)
# No guest is cloned without these; it boots with --cold.
CLONES = _all("templates are warmed up with a disk of each kind", "BLK_DEV_NVME", "BLK_DEV_SD", "SCSI_VIRTIO")
# No guest gets ready without these.
GUEST = (*BOOT, *CLONES)
# Every scenario skips without these.
EVERY_SCENARIO = _all("every scenario needs it", "MEMCG", "BLK_CGROUP", "CGROUP_WRITEBACK", builtin=True) + _all(
    "every scenario needs it", "BLK_DEV_LOOP"
)
# Some scenarios skip without these.
SOME_SCENARIOS = (
    *_all("io-max and io-pressure need it", "BLK_DEV_THROTTLING"),
    *_all("io-pressure needs it", "PSI"),
    *_all("iocost and inversion need it", "BLK_CGROUP_IOCOST"),
    *_all("io-weight needs it", "BFQ_GROUP_IOSCHED"),
    *_all("swap-in needs it", "SWAP"),
    *_all("listener needs it", "FANOTIFY", "INOTIFY_USER"),
    *_all("workers and requests need it", "EVENT_TRACING"),
    *_all("engine needs it", "AIO", "IO_URING"),
    *_all("what stands on xfs and btrfs needs it", "XFS_FS", "BTRFS_FS"),
    *_all("lock-order needs it", "PROVE_LOCKING"),
    *_all("destroy-race needs it", "KASAN"),
    *_all("leak needs it", "DEBUG_KMEMLEAK"),
    *_all("no-worker needs it", "FAILSLAB"),
    *_all("io-latency needs it", "BLK_CGROUP_IOLATENCY"),
)


# The module of each option that may be one.
MODULES = {
    "VIRTIO_PCI": "virtio_pci",
    "VIRTIO_BLK": "virtio_blk",
    "EXT4_FS": "ext4",
    "VIRTIO_NET": "virtio_net",
    "BLK_DEV_NVME": "nvme",
    "BLK_DEV_SD": "sd_mod",
    "SCSI_VIRTIO": "virtio_scsi",
    "BLK_DEV_LOOP": "loop",
}


def unmet_requirements(requirements: tuple[Requirement, ...], config: Mapping[str, Option]) -> tuple[str, ...]:
    """Describe the requirements that a configuration does not meet."""
    found = []
    for one in requirements:
        enough = ("y",) if one.builtin else ("y", "m")
        if not any(name in config and config[name].value in enough for name in one.options):
            found.append(f"CONFIG_{' or CONFIG_'.join(one.options)}={'y' if one.builtin else 'y or m'}: {one.why}")
    return tuple(found)


def without_module(
    requirements: tuple[Requirement, ...], config: Mapping[str, Option], modules: Collection[str]
) -> tuple[str, ...]:
    """Describe the required options that are modules, but whose module is not among `modules`."""
    return tuple(
        f"CONFIG_{name}=m without {MODULES[name]}.ko: {one.why}"
        for one in requirements
        for name in one.options
        if name in config and config[name].value == "m" and name in MODULES and MODULES[name] not in modules
    )
