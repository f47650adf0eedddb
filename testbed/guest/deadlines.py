"""How long each wait on a guest may take: booting, restoring, SSH, commands, setup steps, QEMU's monitor. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each wait on a guest may take, in seconds."""

    boot_s: float
    restore_s: float
    ssh_s: float
    command_s: float
    stack_s: float  # all setup steps, which make filesystems and fill files
    monitor_s: float


# A cold boot took 8 to 9 s on the host where these limits were chosen (2 cores, TCG); a slower host gets more time in
# proportion.
_REFERENCE_BOOT_S = 8.5


def deadlines(measured_boot_s: float | None) -> Deadlines:
    """Return the limits for a host on which a cold boot took `measured_boot_s`; None if that is not known yet."""
    slowness = 4.0 if measured_boot_s is None else max(1.0, measured_boot_s / _REFERENCE_BOOT_S)
    return Deadlines(
        boot_s=90 * slowness,
        restore_s=30 * slowness,
        ssh_s=20 * slowness,
        command_s=60 * slowness,
        stack_s=240 * slowness,
        monitor_s=20 * slowness,
    )
