"""A topology's guest and the host's facts to the argv that starts QEMU. Touches nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from testbed.errors import HostError
from testbed.hardware.disk_kinds import MODULES_SERIAL, ROOT_SERIAL
from testbed.hashing import content_key
from testbed.host.facts import NO_SANDBOX, Host, cpu_model
from testbed.qemu import blockdev
from testbed.qemu.blockdev import QmpCommand
from testbed.topology.model import GuestModel
from testbed.units import MIB

# panic=-1 with -no-reboot: a panic ends QEMU at once. no_timer_check, tsc and expedited RCU shorten the boot under emulation; mitigations
# cost time there and protect nobody. The console stays quiet below warnings, and dmesg has everything. Newer QEMUs (10.0) have their NVMe
# controllers in a subsystem that others may share, of which the kernel would show each path as a disk of its own.
KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 loglevel=5 mitigations=off random.trust_cpu=on no_timer_check tsc=reliable rcupdate.rcu_expedited=1"
    " nvme_core.multipath=N"
)
# Changes when a template made by an older testbed must not be used: the agent's protocol, the machine's devices, what was checked, who
# may open its memory.
_TEMPLATE_FORMAT = 6
_PORT_COUNTS = (4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineId:
    """Everything that a saved state depends on. Two guests with equal machines can be clones of one template."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """Files that the machine starts from; the disks are only read, and all guests share them. `overlay`: this guest's own, of its root."""

    bzimage: Path
    initramfs: Path
    root: Path
    modules_disk: Path | None
    overlay: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Guest memory: a file of its own for a template (`shared`), the template's file copied on write for a clone, or anonymous."""

    file: Path | None = None
    shared: bool = False

    def only_read(self, host: Host) -> bool:
        """Whether QEMU opens the file to read only. Some open it for writing, also to copy from it."""
        return host.qemu.reads_memory and not self.shared


ANONYMOUS = Memory()


def machine_id(host: Host, guest: GuestModel, *, kernel: str, image: str, initramfs: str) -> MachineId:
    """The machine of a guest; kernel, image and initramfs are the hashes of what it boots.

    :raise HostError: the guest wants KVM, or networks, and this host has none that work.
    """
    accelerator = guest.accelerator or host.accelerator
    if accelerator == "kvm" and not host.kvm.works:
        raise HostError(f"the topology wants accelerator: kvm; here it is not used: {host.kvm.why}")
    if guest.networks and not host.qemu.networks:
        raise HostError(
            f"{host.qemu.path}: networks: expected a QEMU with -netdev dgram (7.2 or later), got {host.qemu.version}, which has none; "
            "name another with TESTBED_QEMU, or leave networks out"
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


def argv(
    host: Host,
    wanted: MachineId,
    files: BootFiles,
    *,
    name: str,
    sockets: Path,
    memory: Memory,
    restore: bool = False,
    cold: tuple[QmpCommand, ...] = (),
) -> tuple[tuple[str, ...], ...]:
    """QEMU's command line, an option and its value in each inner tuple.

    `sockets`: folder of the unix sockets `qmp`, `poll`, `console` and `agent`. `restore`: wait for a saved state instead of booting.
    `cold`: the commands that make the disks which are there from the start.

    :raise HostError: this QEMU has no sandbox.
    """
    size = f"{wanted.memory_bytes // MIB}M"
    backend = f"memory-backend-ram,id=ram,size={size}"
    if memory.file is not None:
        way = (
            "share=on" if memory.shared else "share=off,readonly=on,rom=off" if memory.only_read(host) else "share=off"
        )
        backend = f"memory-backend-file,id=ram,size={size},mem-path={_escaped(memory.file)},{way}"
    options: list[tuple[str, ...]] = [
        (host.qemu.path,),
        ("-name", f"guest={name}"),
        ("-nodefaults",),
        ("-no-user-config",),
        ("-display", "none"),
        ("-no-reboot",),
        ("-S",),  # nothing runs, and nothing is said on a wire, before somebody listens
        ("-machine", "q35,memory-backend=ram,vmport=off"),
        ("-accel", wanted.accelerator),
        ("-cpu", wanted.cpu),
        ("-smp", str(wanted.cpus)),
        ("-m", size),
        ("-object", backend),
        *_serial_port("console", sockets),
        *_serial_port("agent", sockets),
        *_monitor("qmp", sockets),
        *_monitor("poll", sockets),
        ("-kernel", str(files.bzimage)),
        ("-initrd", str(files.initramfs)),
        ("-append", wanted.append),
        ("-drive", _root_disk(files)),
        ("-device", f"virtio-blk-pci,drive=root,serial={ROOT_SERIAL},addr=2"),
        *_modules_disk(files.modules_disk),
        # restrict=on: the guest reaches nothing, not even the host; only the forwarded port gets in, and only from this machine.
        ("-netdev", "user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"),
        # guest_announce=off: a clone is no machine that moved; announcing itself took 0.03 s of its first 0.1 s.
        ("-device", "virtio-net-pci,netdev=net,addr=4,romfile=,guest_announce=off"),
        *_ports(wanted.ports),
        # Where the kernel says how its memory is to be read; a dump without it is a riddle.
        ("-device", "vmcoreinfo"),
        *blockdev.as_options(cold),
        *sandbox_options(host),
    ]
    if restore:
        options.append(("-incoming", "defer"))
    options += [(word,) for word in wanted.qemu_args]  # the topology's escape hatch
    return tuple(options)


def sandbox_options(host: Host) -> tuple[tuple[str, ...], ...]:
    """What confines QEMU to the system calls that it needs; nothing where there is no such thing, and the caller wants none.

    :raise HostError: this QEMU has none.
    """
    if host.qemu.sandbox:
        return (host.qemu.sandbox,)
    if host.sandbox_waived:
        return ()
    raise HostError(
        f"{host.qemu.path}: expected a QEMU that has a sandbox (seccomp), got {host.qemu.version}, built without; install qemu-system-x86, "
        f"or set {NO_SANDBOX}=1 if you trust what runs in your guests"
    )


def _root_disk(files: BootFiles) -> str:
    if files.overlay is not None:
        # Its image is named here, and not by what the file says of itself.
        image = f"backing.driver=raw,backing.file.filename={_escaped(files.root)}"
        return f"if=none,id=root,format=qcow2,file={_escaped(files.overlay)},{image}"
    # snapshot=on: what this guest writes goes to a file that has no name from its first moment on.
    return f"if=none,id=root,format=raw,snapshot=on,file={_escaped(files.root)}"


def _serial_port(name: str, sockets: Path) -> tuple[tuple[str, ...], ...]:
    return (
        ("-chardev", f"socket,id={name},path={_escaped(sockets / name)},server=on,wait=off"),
        ("-device", f"isa-serial,chardev={name}"),
    )


def _monitor(name: str, sockets: Path) -> tuple[tuple[str, ...], ...]:
    return (
        ("-chardev", f"socket,id={name},path={_escaped(sockets / name)},server=on,wait=off"),
        ("-mon", f"chardev={name},mode=control"),
    )


def _modules_disk(path: Path | None) -> tuple[tuple[str, ...], ...]:
    if path is None:
        return ()
    return (
        ("-drive", f"if=none,id=modules,format=raw,read-only=on,file={_escaped(path)}"),
        ("-device", f"virtio-blk-pci,drive=modules,serial={MODULES_SERIAL},addr=3"),
    )


def _ports(count: int) -> tuple[tuple[str, ...], ...]:
    """PCIe root ports to hot-plug disks into: eight to a slot, as functions of one device."""
    return tuple(
        (
            "-device",
            f"pcie-root-port,id=port{number},chassis={number + 1},addr={8 + number // 8:x}.{number % 8},multifunction=on",
        )
        for number in range(count)
    )


def _escaped(path: Path) -> str:
    """A path inside an option with commas: QEMU reads a doubled comma as one."""
    return str(path).replace(",", ",,")


def flatten_options(options: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The argv as a program takes it."""
    return tuple(word for option in options for word in option)
