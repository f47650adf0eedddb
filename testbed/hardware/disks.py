"""Kinds of emulated disks: one row each. What differs between them (device model, how the guest shows it) is here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskKind:
    """`driver`: QEMU's device model. `guest_prefix`: its disks in /sys/block begin so. `guest_serial`: the file there with the serial."""

    driver: str
    guest_prefix: str
    guest_serial: str


DISK_KINDS: dict[str, DiskKind] = {
    "virtio-blk": DiskKind(driver="virtio-blk-pci", guest_prefix="vd", guest_serial="serial"),
    # The namespace of the `drive=` shorthand has no identifiers of its own, and Linux says "Ignoring bogus Namespace Identifiers"
    # (6.1 and later): harmless, and the controller's serial identifies the disk.
    "nvme": DiskKind(driver="nvme", guest_prefix="nvme", guest_serial="device/serial"),
}

# Serial numbers are at most 20 characters on both kinds (VIRTIO_BLK_ID_BYTES; NVMe Identify Controller, SN).
SERIAL_PREFIX = "tb-"
ROOT_SERIAL = f"{SERIAL_PREFIX}root"
MODULES_SERIAL = f"{SERIAL_PREFIX}modules"


def serial(disk_name: str) -> str:
    """The serial by which the guest finds the disk named so in the topology."""
    return f"{SERIAL_PREFIX}{disk_name}"
