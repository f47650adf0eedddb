"""Limits of a disk, under the names and the rules of QEMU's throttle groups (qapi/block-core.json, `ThrottleLimits`;
docs/throttle.txt).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

# QEMU's own bound (include/qemu/throttle.h, THROTTLE_VALUE_MAX).
MOST = 10**15
_UNITS, _WAYS = ("iops", "bps"), ("total", "read", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """Limits in requests and bytes a second; 0 is unlimited.

    A total excludes the read and write limits of the same unit.

    `*_max`: what a burst may reach, for `*_max_length` seconds (1 if that is 0). `iops_size`: a larger request counts
    as one for each part of this many bytes.
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
        """Return QEMU's `ThrottleLimits`. It names every limit, so that setting it removes earlier ones."""
        return {
            name.replace("_", "-"): max(value, 1) if name.endswith("_length") else value
            for name, value in self.given(every=True).items()
        }

    def given(self, *, every: bool = False) -> dict[str, int]:
        """Return the limits that are set, by their names here."""
        return {field.name: getattr(self, field.name) for field in fields(self) if every or getattr(self, field.name)}

    def scaled(self, factor: float) -> Throttle:
        """Return the limits of a device that is `factor` times as fast: rates and bursts are multiplied, lengths and
        sizes are not.
        """
        rates = {
            name: max(1, round(value * factor))
            for name, value in self.given().items()
            if not name.endswith("_length") and name != "iops_size"
        }
        return Throttle(**(self.given() | rates))

    def mistakes(self) -> Iterator[str]:
        """Yield what QEMU would refuse; the caller adds where the values are from."""
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
                    yield (
                        f"expected {unit}-total{end} or {unit}-read{end} and {unit}-write{end}, got both (QEMU refuses "
                        "that)"
                    )
            for way in _WAYS:
                burst, length = (getattr(self, f"{unit}_{way}{suffix}") for suffix in ("_max", "_max_length"))
                if burst and burst < average[way]:
                    yield f"{unit}-{way}-max: expected at least {unit}-{way}, which is {average[way]}, got {burst}"
                elif burst and not average[way]:
                    yield f"{unit}-{way}-max: expected {unit}-{way} beside it, got none"
                if length and not burst:
                    yield f"{unit}-{way}-max-length: expected {unit}-{way}-max beside it, got none"


def from_qemu_limits(limits: Mapping[str, int]) -> Throttle:
    """Convert the limits that QEMU reports for a group: without a burst it reports a length of 1, which was not set."""
    throttle = from_qemu(limits)
    given = throttle.given()
    return replace(
        throttle,
        **{name: 0 for name in given if name.endswith("_length") and name.removesuffix("_length") not in given},
    )


def from_qemu(limits: Mapping[str, int]) -> Throttle:
    """Convert limits from QEMU's names; names that are missing are not limited.

    :raise ValueError: a name is not a limit.
    """
    known = {field.name.replace("_", "-"): field.name for field in fields(Throttle)}
    if unknown := [name for name in limits if name not in known]:
        raise ValueError(f"expected one of {', '.join(known)}, got {' and '.join(map(repr, unknown))}")
    return Throttle(**{known[name]: value for name, value in limits.items()})
