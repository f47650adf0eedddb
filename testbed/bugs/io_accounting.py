"""Compares the bytes that the emulated disks transferred during a try with those that the guest's kernel accounts for.

A counter in the guest can be wrong: root can forge all of them, and the kernel may have a bug. QEMU counts the bytes of
each disk as well, out of the guest's reach. A kernel counts a request once the device has completed it, so that it
never accounts for more than QEMU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from testbed import cgroupfs
from testbed.errors import ReadingError, TestbedError
from testbed.guest.guest import Guest
from testbed.guest.metrics import readings
from testbed.guest.shell_functions import FileTexts
from testbed.units import MIB

_FILE = "/sys/fs/cgroup/io.stat"
_WAYS = (("read", "rd", "rbytes"), ("written", "wr", "wbytes"))
# The kernel does not account for passthrough requests or for what is transferred between the two readings; more than
# this is reported.
_MOST_MISSING_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One disk during one try: bytes `read` and `written`, counted by the device and by the guest's root cgroup (None:
    not known).

    `finding`: how the two contradict each other; `note`: why they cannot be compared.
    """

    disk: str
    device: Mapping[str, int] | None = None
    guest: Mapping[str, int] | None = None
    finding: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        sides = {"device": self.device, "guest": self.guest}
        found = {
            f"{side}_{way}_bytes": None if one is None else one[way]
            for side, one in sides.items()
            for way, _, _ in _WAYS
        }
        return {"disk": self.disk, **found, "finding": self.finding, "note": self.note}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Both counts at one moment: `device`: QEMU's, by disk (None: QEMU does not answer); `guest`: the guest's files, or
    `why` there are none."""

    device: Mapping[str, Mapping[str, int]] | None
    guest: FileTexts | None
    why: str = ""


async def snapshot_before(guest: Guest) -> Snapshot:
    """Read both before a try: the device first, so that its count includes all that the guest counts."""
    device = await _device(guest)
    texts, why = await _texts(guest)
    return Snapshot(device=device, guest=texts, why=why)


async def snapshot_after(guest: Guest, before: Snapshot, *, answers: bool) -> tuple[Account, ...]:
    """Read both after a try, the device last, and compare. `answers`: whether the guest still answers."""
    texts, why = await _texts(guest) if answers else (None, "the guest did not answer at the end")
    after = Snapshot(device=await _device(guest), guest=texts, why=why)
    return tuple(
        compare(name, disk.number, before, after) for name, disk in guest.disks.items() if name in guest.model.disks
    )


async def _device(guest: Guest) -> Mapping[str, Mapping[str, int]] | None:
    try:
        return await readings.read_disks(guest)
    except TestbedError:
        return None


async def _texts(guest: Guest) -> tuple[FileTexts | None, str]:
    try:
        return (await readings.take_files(guest, f"take {_FILE}; finish", timeout_s=10))[""], ""
    except TestbedError as error:
        return None, str(error)


def compare(name: str, number: str, before: Snapshot, after: Snapshot) -> Account:
    """Compare the counts of one disk between two snapshots. `number`: its MAJ:MIN in the guest."""
    device = _moved(name, before.device, after.device)
    if before.guest is None or after.guest is None:
        return Account(disk=name, device=device, note=before.why or after.why)
    try:
        first, last = (side.text(_FILE) for side in (before.guest, after.guest))
        guest = {
            way: cgroupfs.bytes_moved(first, last, number, counter, after.guest.where(_FILE))
            for way, _, counter in _WAYS
        }
    except ReadingError as error:
        return Account(disk=name, device=device, note=str(error))
    if device is None:
        return Account(disk=name, guest=guest, note="QEMU's counters of it began anew, or are not there")
    return Account(
        disk=name, device=device, guest=guest, finding=_finding(device, guest, failed=_failed(name, before, after))
    )


def _moved(
    name: str, before: Mapping[str, Mapping[str, int]] | None, after: Mapping[str, Mapping[str, int]] | None
) -> dict[str, int] | None:
    first, last = ((side or {}).get(name) for side in (before, after))
    if first is None or last is None:
        return None
    found = {way: last[f"{key}_bytes"] - first[f"{key}_bytes"] for way, key, _ in _WAYS}
    return found if min(found.values()) >= 0 else None


def _failed(name: str, before: Snapshot, after: Snapshot) -> bool:
    """Whether requests failed: the kernel accounts for all bytes of a request, the device only for those that it
    transferred."""
    assert before.device is not None and after.device is not None
    return any(
        after.device[name].get(key, 0) != before.device[name].get(key, 0)
        for key in ("failed_rd_operations", "failed_wr_operations")
    )


def _finding(device: Mapping[str, int], guest: Mapping[str, int], *, failed: bool) -> str:
    for way in device:
        if guest[way] > device[way] and not failed:
            return (
                f"the guest accounts for {guest[way]} bytes {way}, its device has moved {device[way]}:"
                " the guest's counters are wrong"
            )
        if device[way] > 2 * guest[way] + _MOST_MISSING_BYTES:
            return f"the device has moved {device[way]} bytes {way}, the guest accounts for {guest[way]} of them"
    return ""
