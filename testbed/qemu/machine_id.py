"""The identity of a machine: what a saved state of it depends on, and so the key of templates. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from testbed.errors import HostError
from testbed.hashing import content_key
from testbed.host.facts import Host, cpu_model
from testbed.topology.model import GuestModel

# panic=-1 with -no-reboot: a panic ends QEMU at once. no_timer_check, tsc and expedited RCU shorten the boot under
# emulation; mitigations cost time there and protect nobody. The console shows only warnings and errors; dmesg has
# everything. Newer QEMUs (10.0) put their NVMe controllers into a subsystem that may be shared; without multipath=N the
# kernel would show each path as a disk of its own.
KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 loglevel=5 mitigations=off random.trust_cpu=on no_timer_check tsc=reliable"
    " rcupdate.rcu_expedited=1 nvme_core.multipath=N"
)
# Raised when templates of an older testbed must not be used: after a change of the agent's protocol, of the machine's
# devices, of what was checked in the template, or of who may open its memory.
_TEMPLATE_FORMAT = 6
_PORT_COUNTS = (4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineId:
    """Everything that a saved state depends on. Guests with equal values can be clones of one template."""

    qemu: str
    accelerator: str
    cpu: str
    cpus: int
    memory_bytes: int
    ports: int
    kernel: str
    image: str
    initramfs: str
    append: str = KERNEL_ARGUMENTS
    qemu_args: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return content_key(_TEMPLATE_FORMAT, asdict(self))


def machine_id(host: Host, guest: GuestModel, *, kernel: str, image: str, initramfs: str) -> MachineId:
    """Return the identity of a guest's machine; `kernel`, `image` and `initramfs` are the hashes of the files that it
    boots.

    :raise HostError: the guest needs KVM or networks, which do not work on this host.
    """
    accelerator = guest.accelerator or host.accelerator
    if accelerator == "kvm" and not host.kvm.works:
        raise HostError(f"the topology wants accelerator: kvm; here it is not used: {host.kvm.why}")
    if guest.networks and not host.qemu.networks:
        raise HostError(
            f"{host.qemu.path}: networks: expected a QEMU with -netdev dgram (7.2 or later), got {host.qemu.version}, "
            "which has none; name another with TESTBED_QEMU, or leave networks out"
        )
    return MachineId(
        qemu=host.qemu.identity,
        accelerator=accelerator,
        cpu=guest.cpu_model or cpu_model(accelerator),
        cpus=guest.cpus,
        memory_bytes=guest.memory,
        ports=next(count for count in _PORT_COUNTS if count >= len(guest.disks) + len(guest.networks)),
        kernel=kernel,
        image=image,
        initramfs=initramfs,
        append=" ".join((KERNEL_ARGUMENTS, *guest.append)),
        qemu_args=guest.qemu_args,
    )
