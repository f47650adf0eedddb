"""Plans the argv that starts QEMU, from a topology's guest and the host's facts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.errors import HostError
from testbed.hardware.disk_kinds import MODULES_SERIAL, ROOT_SERIAL
from testbed.host.facts import NO_SANDBOX, Host
from testbed.qemu.machine_id import MachineId
from testbed.qemu.qmp_command import QmpCommand, as_options
from testbed.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """Files that the machine starts from.

    All guests share the disks, which are only read. `overlay`: what this guest writes to its root disk.
    """

    bzimage: Path
    initramfs: Path
    root: Path
    modules_disk: Path | None
    overlay: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Guest memory: a file of its own for a template (`shared`), the template's file, copied on write, for a clone, or
    anonymous.
    """

    file: Path | None = None
    shared: bool = False

    def only_read(self, host: Host) -> bool:
        """Tell whether QEMU opens the file for reading only.

        Some QEMUs open it for writing even if they only copy from it.
        """
        return host.qemu.reads_memory and not self.shared


ANONYMOUS = Memory()


def argv(
    host: Host,
    machine: MachineId,
    files: BootFiles,
    *,
    name: str,
    sockets: Path,
    memory: Memory,
    restore: bool = False,
    cold: tuple[QmpCommand, ...] = (),
) -> tuple[tuple[str, ...], ...]:
    """Return QEMU's command line; each inner tuple is an option with its value.

    `sockets`: folder of the unix sockets `qmp`, `poll`, `console` and `agent`. `restore`: wait for a saved state
    instead of booting. `cold`: the commands that make the disks which are plugged in from the start.

    :raise HostError: this QEMU has no sandbox.
    """
    return (
        (host.qemu.path,),
        ("-name", f"guest={name}"),
        *_machine_options(host, machine, memory),
        *_channels(sockets),
        *_boot(machine, files),
        *_network(),
        *_root_ports(machine.ports),
        # Tells where the kernel describes its memory; without it, tools cannot parse the dump.
        ("-device", "vmcoreinfo"),
        *as_options(cold),
        *sandbox_options(host),
        *((("-incoming", "defer"),) if restore else ()),
        *((word,) for word in machine.qemu_args),  # the topology's escape hatch
    )


def _machine_options(host: Host, machine: MachineId, memory: Memory) -> tuple[tuple[str, ...], ...]:
    size = f"{machine.memory_bytes // MIB}M"
    backend = f"memory-backend-ram,id=ram,size={size}"
    if memory.file is not None:
        copied = "share=off,readonly=on,rom=off" if memory.only_read(host) else "share=off"
        sharing = "share=on" if memory.shared else copied
        backend = f"memory-backend-file,id=ram,size={size},mem-path={_escaped(memory.file)},{sharing}"
    return (
        ("-nodefaults",),
        ("-no-user-config",),
        ("-display", "none"),
        ("-no-reboot",),
        ("-S",),  # the CPUs stand still, and no channel carries output, before the testbed is connected
        ("-machine", "q35,memory-backend=ram,vmport=off"),
        ("-accel", machine.accelerator),
        ("-cpu", machine.cpu),
        ("-smp", str(machine.cpus)),
        ("-m", size),
        ("-object", backend),
    )


def _channels(sockets: Path) -> tuple[tuple[str, ...], ...]:
    return (
        *_serial_port("console", sockets),
        *_serial_port("agent", sockets),
        *_monitor("qmp", sockets),
        *_monitor("poll", sockets),
    )


def _boot(machine: MachineId, files: BootFiles) -> tuple[tuple[str, ...], ...]:
    return (
        ("-kernel", str(files.bzimage)),
        ("-initrd", str(files.initramfs)),
        ("-append", machine.append),
        ("-drive", _root_disk(files)),
        ("-device", f"virtio-blk-pci,drive=root,serial={ROOT_SERIAL},addr=2"),
        *_modules_disk(files.modules_disk),
    )


def _network() -> tuple[tuple[str, ...], ...]:
    return (
        # restrict=on: the guest reaches nothing, not even the host; the forwarded port lets in connections from this
        # machine only.
        ("-netdev", "user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"),
        # guest_announce=off: a clone is not a machine that moved; announcing itself took 0.03 s of its first 0.1 s.
        ("-device", "virtio-net-pci,netdev=net,addr=4,romfile=,guest_announce=off"),
    )


def sandbox_options(host: Host) -> tuple[tuple[str, ...], ...]:
    """Return the option that restricts QEMU's system calls; empty if this QEMU has none and the user has waived it.

    :raise HostError: this QEMU has no sandbox, and the user has not waived it.
    """
    if host.qemu.sandbox:
        return (host.qemu.sandbox,)
    if host.sandbox_waived:
        return ()
    raise HostError(
        f"{host.qemu.path}: expected a QEMU that has a sandbox (seccomp), got {host.qemu.version}, built without; "
        f"install qemu-system-x86, or set {NO_SANDBOX}=1 if you trust what runs in your guests"
    )


def _root_disk(files: BootFiles) -> str:
    if files.overlay is not None:
        # The image below the overlay is named here; QEMU must not take it from the overlay's header.
        image = f"backing.driver=raw,backing.file.filename={_escaped(files.root)}"
        return f"if=none,id=root,format=qcow2,file={_escaped(files.overlay)},{image}"
    # snapshot=on: what this guest writes goes to a file that QEMU unlinks as soon as it has created it.
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


def _root_ports(count: int) -> tuple[tuple[str, ...], ...]:
    """PCIe root ports for hot-plugged disks: eight in a slot, as functions of one device."""
    places = ((number, f"addr={8 + number // 8:x}.{number % 8},multifunction=on") for number in range(count))
    return tuple(
        ("-device", f"pcie-root-port,id=port{number},chassis={number + 1},{place}") for number, place in places
    )


def _escaped(path: Path) -> str:
    """Escape a path inside a comma-separated option: QEMU reads a doubled comma as one."""
    return str(path).replace(",", ",,")


def flatten_options(options: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Flatten the options to the argv of a program."""
    return tuple(word for option in options for word in option)
