"""What this machine can do, as one frozen value. Planners receive it; only `probe` makes one."""

from __future__ import annotations

from dataclasses import dataclass

# Set to 1 where guests are one's own, and QEMU was built without a sandbox.
NO_SANDBOX = "TESTBED_NO_SANDBOX"


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """The emulator that was found, and what asking it showed.

    `identity` changes when the program does (path, size and time of change): templates and probes are keyed by it.
    `modules`: the folder of its modules, where it has one beside it: a package that was extracted somewhere does.
    `warm_clones`: it has what saving and restoring a template takes. `seccomp`: it was built with `-sandbox`. `networks`: it has what
    networks between guests stand on (`-netdev dgram`). `reads_memory`: it opens a file of memory that it copies from to read only.
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
        """The option that keeps it to the system calls that it needs; nothing where it was built without."""
        return (
            ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
            if self.seccomp
            else ()
        )

    @property
    def environment(self) -> dict[str, str]:
        """What it needs to find its own modules (docs/devel/modules.rst); it would take those of the installed QEMU, and end."""
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
    """How far QEMU is kept from this machine, found out by trying.

    `confined`: it starts as `confine.py` says, and Landlock holds it as far as this kernel's has come (its ABI, `landlock`; 0: there is
    none). `apart`: it sees nothing in the folders where everybody's sockets are. `alone`: it has a network namespace of its own, so that
    only the testbed connects to its guest. Each has why it is not so.
    """

    confined: bool = False
    why_unconfined: str = "it was not tried"
    landlock: int = 0
    apart: bool = False
    why_together: str = "it was not tried"
    alone: bool = False
    why_not_alone: str = "it was not tried"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The facts. Memory and disk in bytes. `account`: whom QEMU runs as; None: as whoever started the testbed, for the reason
    `why_own_account`. `kvm_group`: who may use /dev/kvm. `sandbox_waived`: a QEMU that has no sandbox may run guests all the same.
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
    confinement: JailSupport = JailSupport()

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups of QEMU's account: KVM's, which must not be root's."""
        return (self.kvm_group,) if self.kvm.works and self.kvm_group else ()

    @property
    def accelerator(self) -> str:
        return "kvm" if self.kvm.works else "tcg"


# CPU features that are switched off under TCG: Linux 6.12 dies of a double fault in __kmalloc_noprof with either (5-level page tables,
# protection keys). Seen on QEMU 7.2.22; nothing that could be asked says whether a QEMU has it, and no kernel of the table needs them.
_NOT_UNDER_TCG = ("la57", "pku")


def cpu_model(accelerator: str) -> str:
    """The `-cpu` that boots all kernels of the table."""
    return "host" if accelerator == "kvm" else ",".join(["max", *(f"-{feature}" for feature in _NOT_UNDER_TCG)])
