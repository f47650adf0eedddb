"""What is missing on this machine, and the command that mends it."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import HostError, ToolMissing
from testbed.host import process
from testbed.host.facts import NO_SANDBOX, Host
from testbed.qemu import jail
from testbed.store import unshare
from testbed.store.kernels import build_jail
from testbed.store.mirror import find_mirror
from testbed.units import GIB, format_size

_KEEPING = "Linux 6.12 with Landlock, libseccomp, and user namespaces where the testbed is not root"
# A guest's memory and what QEMU needs beside it; and what kernels, image, and two templates take in the cache.
_NEEDED_MEMORY_BYTES = 2 * GIB
_NEEDED_DISK_BYTES = 4 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """One problem; `mend` is a command, or what else to do. With one that is not `fatal` the testbed works."""

    what: str
    mend: str
    fatal: bool = True


async def complaints(host: Host | None) -> tuple[Complaint, ...]:
    """Everything that is wrong; `host` is None where there was no QEMU to ask."""
    said = [
        Complaint(what=f"{tool} is not installed", mend=f"apt-get install {process.PACKAGES[tool]}")
        for tool, where in process.find_all().items()
        if where == "missing" and not (tool == "newuidmap" and os.getuid() == 0)
    ]
    try:
        await find_mirror()
    except ToolMissing:
        pass  # already said
    except HostError as error:
        said.append(
            Complaint(
                what=str(error), mend="export TESTBED_DEBIAN_MIRROR=URL, or apt-get install debian-archive-keyring"
            )
        )
    if os.getuid() != 0 and not _has_subordinate_ids():
        user = pwd.getpwuid(os.getuid()).pw_name
        said.append(
            Complaint(
                what=f"{user} has no subordinate user ids, which building an image without root needs",
                mend=f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
        )
    if said_of_namespaces := await unshare.why_unavailable():
        said.append(
            Complaint(
                what=f"an image cannot be built: no namespaces of its own for mmdebstrap: {said_of_namespaces}",
                mend="a user who may make user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone), or root",
            )
        )
    found, why = await build_jail.find_build_jail()
    if found is None:
        said.append(
            Complaint(
                what=f"kernels are not built in an enclosure, so that what a source or a patch has make do, it does as you: {why}",
                mend=f"root that may mount, a user who may make user namespaces, or {build_jail.TRUST}=1 where you trust a source",
                fatal=False,
            )
        )
    if host is not None:
        if host.memory_free_bytes < _NEEDED_MEMORY_BYTES:
            said.append(
                Complaint(
                    what=f"{format_size(host.memory_free_bytes)} of memory is free, two guests need 2G",
                    mend="end something",
                )
            )
        if host.disk_free_bytes < _NEEDED_DISK_BYTES:
            said.append(
                Complaint(
                    what=f"{format_size(host.disk_free_bytes)} is free in the cache, 4G is needed",
                    mend="set TESTBED_CACHE elsewhere",
                )
            )
        if host.account is None and os.getuid() == 0:
            said.append(
                Complaint(
                    what=f"QEMU runs as root: {host.why_own_account}", mend="a user of its own for QEMU", fatal=False
                )
            )
        said += (
            Complaint(what=f"a guest that takes QEMU over may {left}", mend=_KEEPING, fatal=False)
            for left in jail.unconfined_parts(host.jail)
        )
        if open_to := jail.open_to_other_users(host.jail):
            said.append(Complaint(what=open_to, mend=_KEEPING, fatal=False))
        if not host.qemu.seccomp:
            said.append(
                Complaint(
                    what=f"{host.qemu.path} has no sandbox",
                    mend=f"apt-get install qemu-system-x86; or {NO_SANDBOX}=1 if you trust what runs in your guests",
                    fatal=not host.sandbox_waived,
                )
            )
        if not host.kvm.works:
            said.append(
                Complaint(
                    what=f"guests run on TCG, several times slower than on KVM: {host.kvm.why}",
                    mend="what it says, or a host with working KVM",
                    fatal=False,
                )
            )
        if not host.qemu.warm_clones:
            said.append(
                Complaint(what=f"guests boot cold: {host.qemu.why_not_warm}", mend="QEMU 6.0 or later", fatal=False)
            )
    return tuple(said)


def _has_subordinate_ids() -> bool:
    user = pwd.getpwuid(os.getuid())
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        try:
            owners = {line.split(":")[0] for line in path.read_text(encoding="utf-8").splitlines()}
        except OSError:
            return False
        if not owners & {user.pw_name, str(user.pw_uid)}:
            return False
    return True
