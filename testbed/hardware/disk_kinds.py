"""Kinds of emulated disks: one row each. What differs between them (device model, how the guest shows it) is here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskKind:
    """How the guest shows it: `guest_prefix`: its disks in /sys/block begin so. `guest_serial`: the file there with the serial, after
    `serial_header` bytes. `guest_id`: the file there with its number among several disks of that serial, if it can have several.
    `keeps_size`: why it cannot change its size while it is plugged in, or nothing.
    """

    guest_prefix: str
    guest_serial: str
    serial_header: int = 0
    guest_id: str = ""
    keeps_size: str = ""


DISK_KINDS: dict[str, DiskKind] = {
    "virtio-blk": DiskKind(guest_prefix="vd", guest_serial="serial"),
    # The namespace of the `drive=` shorthand has no identifiers of its own, and Linux says "Ignoring bogus Namespace Identifiers"
    # (6.1 and later): harmless, and the controller's serial identifies the disk.
    "nvme": DiskKind(
        guest_prefix="nvme",
        guest_serial="device/serial",
        guest_id="nsid",
        keeps_size="QEMU's nvme keeps its size while it is plugged in (its block permissions do not share `resize`)",
    ),
    # The SCSI page with the serial begins with four bytes of its own (SPC, unit serial number).
    "virtio-scsi": DiskKind(guest_prefix="sd", guest_serial="device/vpd_pg80", serial_header=4),
}

# Serial numbers are at most 20 characters on both kinds (VIRTIO_BLK_ID_BYTES; NVMe Identify Controller, SN).
SERIAL_PREFIX = "tb-"
ROOT_SERIAL = f"{SERIAL_PREFIX}root"
MODULES_SERIAL = f"{SERIAL_PREFIX}modules"


def serial(disk_name: str) -> str:
    """The serial by which the guest finds the disk named so in the topology."""
    return f"{SERIAL_PREFIX}{disk_name}"
