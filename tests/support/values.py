"""Values that the unit tests share."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

from testbed.host.facts import Host, JailSupport, Kvm, Qemu
from testbed.topology.host_limits import HostLimits
from testbed.units import GIB


def qemu(**changes: object) -> Qemu:
    facts: dict[str, object] = {
        "path": "/usr/bin/qemu-system-x86_64",
        "version": "7.2.22",
        "identity": "abc",
        "warm_clones": True,
        "why_not_warm": "",
        "seccomp": True,
        "networks": True,
        "devices": ("nvme",),
    }
    return Qemu(**(facts | changes))  # type: ignore[arg-type]  # a test's own keywords


def host(*, kvm: bool = False, cores: int = 2, free: int = 16 * GIB, **changes: object) -> Host:
    return Host(
        kernel="6.18",
        cores=cores,
        memory_bytes=24 * GIB,
        memory_free_bytes=free,
        disk_free_bytes=50 * GIB,
        qemu=qemu(**changes),
        kvm=Kvm(works=kvm, why="said so", proven=True),
        jail=JailSupport(confined=True, landlock_abi=7, mount_ns=True, net_ns=True),
    )


# Prefix of a program that mounts, so that nobody else sees the mounts; a plain user needs a user namespace.
APART = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")))


def may_mount() -> bool:
    """Return whether this machine lets us mount anything, as root or in a user namespace."""
    return (
        subprocess.run([*APART, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, check=False).returncode
        == 0
    )


def host_limits(memory_bytes: int) -> HostLimits:
    """Return this host's limits as if it had that much memory."""
    return replace(HostLimits.of_this_host(), memory_bytes=memory_bytes)
