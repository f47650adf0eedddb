"""What the emulated disks moved during a try, beside what the guest's kernel accounts for.

A counter is the guest's word: a root in it can forge all of them, and its kernel may be wrong. The bytes of a disk are counted by the
device as well, which the guest cannot reach. A kernel counts a request when the device has done it, so that it never accounts for more.
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
# Passthrough requests are in no account of the kernel's, nor is what moves between two looks; more than this is worth a word.
_MOST_MISSING_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One disk during one try: bytes `read` and `written`, by the device and by the guest's root cgroup (None: not known).

    `finding`: how they contradict each other; `note`: why they cannot be compared.
    """

    disk: str
    device: Mapping[str, int] | None = None
    guest: Mapping[str, int] | None = None
    finding: str = ""
    note: str = ""

    def said(self) -> dict[str, Any]:
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
    """Both counts at one moment: QEMU's of each disk, None where it does not answer; and the text of the guest's, or why there is none."""

    device: Mapping[str, Mapping[str, int]] | None
    guest: FileTexts | None
    why: str = ""


async def snapshot_before(guest: Guest) -> Snapshot:
    """Look before a try: at the device first, so that it counts all that the guest does."""
    device = await _device(guest)
    texts, why = await _texts(guest)
    return Snapshot(device=device, guest=texts, why=why)


async def snapshot_after(guest: Guest, before: Snapshot, *, answers: bool) -> tuple[Account, ...]:
    """Look after a try, at the device last. `answers`: whether the guest does."""
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
    """The account of one disk, MAJ:MIN in the guest, between two looks."""
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
    """Whether requests failed: the kernel accounts for what was asked, the device for what it has done."""
    assert before.device is not None and after.device is not None
    return any(
        after.device[name].get(key, 0) != before.device[name].get(key, 0)
        for key in ("failed_rd_operations", "failed_wr_operations")
    )


def _finding(device: Mapping[str, int], guest: Mapping[str, int], *, failed: bool) -> str:
    for way in device:
        if guest[way] > device[way] and not failed:
            return f"the guest accounts for {guest[way]} bytes {way}, its device has moved {device[way]}: the guest's counters are wrong"
        if device[way] > 2 * guest[way] + _MOST_MISSING_BYTES:
            return f"the device has moved {device[way]} bytes {way}, the guest accounts for {guest[way]} of them"
    return ""
