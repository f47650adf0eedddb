"""Limits of a disk, under the names and the rules of QEMU's throttle groups (qapi/block-core.json, `ThrottleLimits`; docs/throttle.txt)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

# QEMU's own bound (include/qemu/throttle.h, THROTTLE_VALUE_MAX).
MOST = 10**15
_UNITS, _WAYS = ("iops", "bps"), ("total", "read", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """Limits in requests and bytes a second; 0 is unlimited. `*_max` is what a burst may reach, for `*_max_length` seconds (1 where it is
    0). `iops_size`: a request counts as one for each so many bytes. A total excludes the read and write limit of the same unit.
    """

    iops_total: int = 0
    iops_read: int = 0
    iops_write: int = 0
    bps_total: int = 0
    bps_read: int = 0
    bps_write: int = 0
    iops_total_max: int = 0
    iops_read_max: int = 0
    iops_write_max: int = 0
    bps_total_max: int = 0
    bps_read_max: int = 0
    bps_write_max: int = 0
    iops_total_max_length: int = 0
    iops_read_max_length: int = 0
    iops_write_max_length: int = 0
    bps_total_max_length: int = 0
    bps_read_max_length: int = 0
    bps_write_max_length: int = 0
    iops_size: int = 0

    def limits(self) -> dict[str, int]:
        """QEMU's `ThrottleLimits`: every limit named, so that setting it leaves nothing of an earlier one."""
        return {
            name.replace("_", "-"): max(value, 1) if name.endswith("_length") else value
            for name, value in self.given(every=True).items()
        }

    def given(self, *, every: bool = False) -> dict[str, int]:
        """The limits that are set, by their names here."""
        return {field.name: getattr(self, field.name) for field in fields(self) if every or getattr(self, field.name)}

    def scaled(self, factor: float) -> Throttle:
        """The same device so many times as fast: rates and bursts are multiplied, lengths and sizes are not."""
        rates = {
            name: max(1, round(value * factor))
            for name, value in self.given().items()
            if not name.endswith("_length") and name != "iops_size"
        }
        return Throttle(**(self.given() | rates))

    def mistakes(self) -> Iterator[str]:
        """What QEMU would refuse, in words; where they are from is the caller's to say."""
        if self.iops_size and not any(getattr(self, f"iops_{way}") for way in _WAYS):
            yield "iops-size: expected a limit of requests beside it, got none"
        for name, value in self.given(every=True).items():
            if not 0 <= value <= MOST:
                yield f"{name.replace('_', '-')}: expected 0 to {MOST}, got {value}"
        for unit in _UNITS:
            average = {way: getattr(self, f"{unit}_{way}") for way in _WAYS}
            for suffix in ("", "_max"):
                total, read, write = (getattr(self, f"{unit}_{way}{suffix}") for way in _WAYS)
                if total and (read or write):
                    end = suffix.replace("_", "-")
                    yield f"expected {unit}-total{end} or {unit}-read{end} and {unit}-write{end}, got both (QEMU refuses that)"
            for way in _WAYS:
                burst, length = (getattr(self, f"{unit}_{way}{suffix}") for suffix in ("_max", "_max_length"))
                if burst and burst < average[way]:
                    yield f"{unit}-{way}-max: expected at least {unit}-{way}, which is {average[way]}, got {burst}"
                elif burst and not average[way]:
                    yield f"{unit}-{way}-max: expected {unit}-{way} beside it, got none"
                if length and not burst:
                    yield f"{unit}-{way}-max-length: expected {unit}-{way}-max beside it, got none"


def from_qemu_limits(limits: Mapping[str, int]) -> Throttle:
    """From what QEMU says of a group: where there is no burst it says a length of 1, which nobody has set."""
    found = from_qemu(limits)
    given = found.given()
    return replace(
        found, **{name: 0 for name in given if name.endswith("_length") and name.removesuffix("_length") not in given}
    )


def from_qemu(limits: Mapping[str, int]) -> Throttle:
    """From QEMU's names, leaving out what is not a limit that is set.

    :raise ValueError: a name is none of them.
    """
    known = {field.name.replace("_", "-"): field.name for field in fields(Throttle)}
    if unknown := [name for name in limits if name not in known]:
        raise ValueError(f"expected one of {', '.join(known)}, got {' and '.join(map(repr, unknown))}")
    return Throttle(**{known[name]: value for name, value in limits.items()})
