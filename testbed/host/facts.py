"""What this machine can do, as one frozen value. Planners receive it; only `qemu/probe.py` makes one. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# Set to 1 by users who trust what runs in their guests, and whose QEMU was built without a sandbox.
NO_SANDBOX = "TESTBED_NO_SANDBOX"


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """The emulator that was found, and its abilities, found by asking it.

    `identity` changes when the program does (path, size and modification time): templates and probe results are keyed
    by it. `modules`: the folder of its modules if it lies beside the program, as in a package that was extracted
    somewhere. `warm_clones`: it can save and restore templates. `seccomp`: it was built with `-sandbox`. `networks`: it
    has `-netdev dgram`, which networks between guests use. `reads_memory`: it can open a file of memory that it copies
    from for reading only.
    """

    path: str
    version: str
    identity: str
    warm_clones: bool
    why_not_warm: str
    seccomp: bool
    networks: bool
    devices: tuple[str, ...]
    modules: str = ""
    reads_memory: bool = False

    @property
    def sandbox(self) -> tuple[str, ...]:
        """The option that restricts QEMU to the system calls that it needs; empty if it was built without."""
        if not self.seccomp:
            return ()
        return ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")

    @property
    def environment(self) -> dict[str, str]:
        """The variables that let QEMU find its own modules (docs/devel/modules.rst); it exits if it finds those of the
        installed QEMU.
        """
        return {"QEMU_MODULE_DIR": self.modules} if self.modules else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kvm:
    """Whether a guest really boots under KVM; `why` says how that is known."""

    works: bool
    why: str
    proven: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user and group of this machine, by number."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JailSupport:
    """How well QEMU can be confined on this machine, found out by trying (`jail_exec.py`).

    Each flag has a reason for when it is False.

    `confined`: Landlock and a seccomp filter restrict it; `landlock_abi`: the version of this kernel's Landlock, 0 if
    it has none. `mount_ns`: a mount namespace hides the folders with other programs' sockets. `net_ns`: a network
    namespace lets only the testbed connect to its guest.
    """

    confined: bool = False
    why_unconfined: str = "it was not tried"
    landlock_abi: int = 0
    mount_ns: bool = False
    why_no_mount_ns: str = "it was not tried"
    net_ns: bool = False
    why_no_net_ns: str = "it was not tried"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The facts of this machine.

    `account`: the account that QEMU runs under; None: the one that started the testbed, for the reason
    `why_own_account`. `kvm_group`: the group of /dev/kvm. `sandbox_waived`: a QEMU without a sandbox may run guests.
    """

    kernel: str
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    qemu: Qemu
    kvm: Kvm
    account: Account | None = None
    why_own_account: str = "the testbed does not run as root"
    kvm_group: int | None = None
    sandbox_waived: bool = False
    jail: JailSupport = JailSupport()

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that QEMU's account gets: that of /dev/kvm, unless that is root's."""
        return (self.kvm_group,) if self.kvm.works and self.kvm_group else ()

    @property
    def accelerator(self) -> str:
        return "kvm" if self.kvm.works else "tcg"


# CPU features that are switched off under TCG: Linux 6.12 dies of a double fault in __kmalloc_noprof with either
# (5-level page tables, protection keys). Seen on QEMU 7.2.22; QEMU offers no way to ask whether a version has the
# fault, and no kernel of the table needs them.
_NOT_UNDER_TCG = ("la57", "pku")


def cpu_model(accelerator: str) -> str:
    """Return the `-cpu` that boots all kernels of the table."""
    return "host" if accelerator == "kvm" else ",".join(["max", *(f"-{feature}" for feature in _NOT_UNDER_TCG)])


# The keys of `doctor --json`, which stay what they are when a field gets another name.
_JAIL_KEYS = {
    "landlock_abi": "landlock",
    "mount_ns": "apart",
    "why_no_mount_ns": "why_together",
    "net_ns": "alone",
    "why_no_net_ns": "why_not_alone",
}


def to_document(host: Host) -> dict[str, Any]:
    """Return the facts as `testbed doctor --json` prints them."""
    facts = asdict(host)
    support = facts.pop("jail")
    confinement = {_JAIL_KEYS.get(name, name): value for name, value in support.items()}
    return {**facts, "confinement": confinement, "accelerator": host.accelerator}
