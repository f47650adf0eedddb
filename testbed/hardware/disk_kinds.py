"""The kinds of emulated disks: one row each.

Everything that differs between them (device model, how the guest shows it) is in this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskKind:
    """How the guest shows disks of this kind, as entries of /sys/block.

    `guest_prefix`: how their names begin. `guest_serial`: the file there with the serial number, after `serial_header`
    bytes. `guest_id`: the file there with the number among several disks of one serial number, if the kind has such.
    `keeps_size`: why its size cannot change while it is plugged in, or empty.
    """

    guest_prefix: str
    guest_serial: str
    serial_header: int = 0
    guest_id: str = ""
    keeps_size: str = ""


DISK_KINDS: dict[str, DiskKind] = {
    "virtio-blk": DiskKind(guest_prefix="vd", guest_serial="serial"),
    # The namespace of the `drive=` shorthand has no identifiers of its own, and Linux logs "Ignoring bogus Namespace
    # Identifiers" (6.1 and later): harmless, and the controller's serial identifies the disk.
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
    """Return the serial number by which the guest finds the disk of that name in the topology."""
    return f"{SERIAL_PREFIX}{disk_name}"
